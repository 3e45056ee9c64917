"""What a model is and does, written into messages."""

from google.protobuf import json_format

from keylock.bundle import ExplainerEntry
from keylock.v1 import explanation_pb2 as pb
from keylock_server.inference.runtime import ServedModel

__all__ = ["describe_explainer", "describe_model", "describe_served"]


def describe_model(model: ServedModel) -> pb.Model:
    """Writes which model it is into a message."""
    return pb.Model(name=model.manifest.name, digest=model.manifest.model_digest, version=model.version)


def describe_served(model: ServedModel) -> pb.GetModelResponse:
    """Writes what a model takes, tells apart and explains into a message."""
    preprocessing = model.manifest.preprocessing
    height, width = preprocessing.size
    return pb.GetModelResponse(
        model=describe_model(model),
        classes=model.manifest.classes,
        preprocessing=pb.Preprocessing(
            height=height,
            width=width,
            channels=preprocessing.channels,
            resize=preprocessing.resize,
            mean=preprocessing.mean,
            std=preprocessing.std,
            bits=preprocessing.bits,
        ),
        explainers=[_with_way(describe_explainer(entry), model) for entry in model.explainers.values()],
        key_available=model.holds_key,
    )


def describe_explainer(entry: ExplainerEntry) -> pb.Explainer:
    """Writes an explainer and its parameters into a message."""
    described = pb.Explainer(name=entry.name)
    json_format.ParseDict(entry.parameters, described.parameters)
    return described


def _with_way(described: pb.Explainer, model: ServedModel) -> pb.Explainer:
    """Adds how an explainer is computed."""
    way = model.ways.get(described.name)
    described.runtime = "torch" if way is None else way.runtime
    described.numbers = "float32" if way is None else way.numbers
    return described
