"""What a model is and does, written into messages."""

from google.protobuf import json_format

from keylock.bundle import ExplainerEntry
from keylock.v1 import explanation_pb2 as pb
from keylock_server.inference.runtime import ServedModel

__all__ = ["describe_explainer", "describe_model", "describe_served"]


_TORCH = "float32 by torch"


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
        explainers=[describe_explainer(entry) for entry in model.explainers.values()],
        key_available=model.holds_key,
        computed_in={name: str(model.ways.get(name, _TORCH)) for name in model.explainers},
    )


def describe_explainer(entry: ExplainerEntry) -> pb.Explainer:
    """Writes an explainer and its parameters into a message."""
    described = pb.Explainer(name=entry.name)
    json_format.ParseDict(entry.parameters, described.parameters)
    return described
