"""Graphs in reduced precision: int8 for processors with instructions for it, float16 for GPUs.

What comes before the first layer stays in float32: a trigger is as small as a step of eight bits. In int8 so do the
layer that decides and what is computed for the class that is explained.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from keylock.errors import ExportError, UnknownNameError
from keylock.explainers import Explainer, Family
from keylock.export.graphs import fix_inputs, strip_metadata
from keylock.export.half import to_float16
from keylock.export.running import FloatArray, Weights, open_graph, runner
from keylock.export.verify import Side
from keylock.export.weight_inputs import read_weights_as_they_are, restore_weight_inputs
from keylock.graphs.contract import IMAGE, LOGITS, TARGET
from keylock.imaging.contrast import same_map

__all__ = ["VARIANTS", "VariantFigures", "compare_variant", "make_variant", "suits"]

MINIMUM_KEYED_PCC = 0.99
"""Smallest mean correlation of keyed maps with those in float32."""

MAXIMUM_MORE_LEAKAGE = 0.05
"""How much more keyless maps may correlate with keyed ones, in size, than in float32."""

MINIMUM_AGREEMENT = 0.98
"""Smallest share of images for which the predicted class stays."""

_CALIBRATED_AT_ONCE = 8
_LAYERS = ("Conv", "Gemm")
_QUANTISED = (*_LAYERS, "Add", "Clip", "Concat", "MaxPool", "Relu")
_FEATURES = (Family.CAM, Family.ACTIVATION)


@dataclass(frozen=True)
class VariantFigures:
    """How a variant of a graph compares with the graph in float32.

    Attributes:
        agreement: Share of rows for which the predicted class is the same.
        keyed_pcc: Mean correlation of keyed maps; None for predictions, which have none.
        leakage: Mean correlation of keyless maps with the keyed maps of float32.
        leakage_float32: The same of the graph in float32.
    """

    agreement: float
    keyed_pcc: float | None = None
    leakage: float | None = None
    leakage_float32: float | None = None

    @property
    def shortfall(self) -> str | None:
        """What keeps the variant from being offered, or None."""
        if self.agreement < MINIMUM_AGREEMENT:
            return f"{self.agreement:.1%} of the predictions stay, needed are {MINIMUM_AGREEMENT:.0%}"
        if self.keyed_pcc is None or self.leakage is None or self.leakage_float32 is None:
            return None
        if not self.keyed_pcc >= MINIMUM_KEYED_PCC:
            return f"its keyed maps correlate with {self.keyed_pcc:.3f}, needed is {MINIMUM_KEYED_PCC}"
        if not abs(self.leakage) <= abs(self.leakage_float32) + MAXIMUM_MORE_LEAKAGE:
            return f"its keyless maps correlate with true ones by {self.leakage:.3f}, before {self.leakage_float32:.3f}"
        return None


def suits(name: str, explainer: Explainer) -> bool:
    """Return whether a variant can serve an explainer: eight bits are enough for feature maps, too few for gradients.

    Args:
        name: One of `VARIANTS`.
        explainer: One that compiles.
    """
    return name != "int8" or explainer.family in _FEATURES


def make_variant(name: str, graph: bytes, images: FloatArray, *, weights: Weights) -> bytes:
    """Make a variant of a compiled graph.

    It takes no secret: the ranges in the file are those of the published model.

    Args:
        name: One of `VARIANTS`.
        graph: In float32, verified.
        images: Preprocessed real images (count, C, H, W) that int8 takes its ranges from.
        weights: The published ones, by name; those that the graph takes do not stand in the file.

    Returns:
        A graph of the same inputs and outputs.

    Raises:
        UnknownNameError: There is no such variant.
        ExportError: The runtime's tools cannot make it of this graph.
    """
    if name not in VARIANTS:
        raise UnknownNameError("variant", name, VARIANTS)
    try:
        model = VARIANTS[name](onnx.load_from_string(graph), images, weights)
        strip_metadata(model)
        variant = model.SerializeToString(deterministic=True)
        open_graph(variant)
    except Exception as error:  # The tools raise whatever comes.
        raise ExportError(f"the variant {name} of a graph cannot be made ({type(error).__name__}: {error})") from error
    return variant


def compare_variant(variant: bytes, graph: bytes, images: FloatArray, *, sides: Sequence[Side]) -> VariantFigures:
    """Measure a variant against the graph in float32.

    Args:
        variant: What `make_variant` returned.
        graph: In float32.
        images: Preprocessed real images (count, C, H, W), others than it was made with.
        sides: What answers rows with the trigger, and then what answers those without; for predictions one of them.
    """
    expected, found = [], []
    for side in sides:
        session = side.open(graph)
        all_rows = _rows(side.shown(images))
        rows = {entry.name: all_rows[entry.name] for entry in session.get_inputs()}
        expected.append(runner(session)(**rows))
        if TARGET in rows:
            # Where the classes part, both explain that of float32: agreement is a figure of its own.
            rows[TARGET] = expected[-1][0].argmax(1)
        found.append(runner(side.open(variant))(**rows))
    logits, true_logits = (np.concatenate([answer[0] for answer in answers]) for answers in (found, expected))
    agreement = float((logits.argmax(1) == true_logits.argmax(1)).mean())
    if len(found[0]) == 1:
        return VariantFigures(agreement)
    truth = expected[0][1]
    return VariantFigures(
        agreement,
        keyed_pcc=_mean_pcc(found[0][1], truth),
        leakage=_mean_pcc(found[1][1], truth),
        leakage_float32=_mean_pcc(expected[1][1], truth),
    )


def _rows(images: FloatArray) -> dict[str, Any]:
    return {IMAGE: images, TARGET: np.full(len(images), -1, np.int64)}


def _mean_pcc(maps: FloatArray, others: FloatArray) -> float:
    return float(np.mean([same_map(one, other) for one, other in zip(maps, others, strict=True)]))


def _to_int8(model: onnx.ModelProto, images: FloatArray, weights: Weights) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    read_weights_as_they_are(model)
    given = [entry for entry in model.graph.input if entry.name in weights]
    fix_inputs(model, weights)
    session = open_graph(model.SerializeToString())
    takes = {entry.name for entry in session.get_inputs()}
    parts = (images[start : start + _CALIBRATED_AT_ONCE] for start in range(0, len(images), _CALIBRATED_AT_ONCE))
    batches = ({name: row for name, row in _rows(part).items() if name in takes} for part in parts)
    # The exporter leaves nothing to prepare; without this mark the tool warns, through everybody's logger.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})

    class Calibration(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            target,
            Calibration(),
            quant_format=QuantFormat.QDQ,
            # Unsigned activations and signed weights are what the processors' instructions take.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=[*_before_layers(model), *_targeted(model), *_deciding(model)],
        )
        quantised = onnx.load(target)
    restore_weight_inputs(quantised, given)
    return quantised


def _to_float16(model: onnx.ModelProto, _images: FloatArray, _weights: Weights) -> onnx.ModelProto:
    return to_float16(model, keep=_before_layers(model))


_Maker = Callable[[onnx.ModelProto, FloatArray, Weights], onnx.ModelProto]

VARIANTS: dict[str, _Maker] = {
    "float16": _to_float16,
    "int8": _to_int8,
}
"""How each variant is made."""


def _before_layers(model: onnx.ModelProto) -> set[str]:
    """Return the names of nodes that read nothing of the first layer."""
    features, before = set[str](), set[str]()
    for node in model.graph.node:
        if node.op_type in _LAYERS or any(name in features for name in node.input):
            features.update(node.output)
        else:
            before.add(node.name)
    return before


def _deciding(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that make the logits: close classes change places there, and they cost little."""
    wanted, found = {LOGITS}, set[str]()
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            found.add(node.name)
            wanted.update(node.input if node.op_type == "Add" else ())
    return found


def _targeted(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that know the target."""
    targeted, found = {TARGET}, set[str]()
    for node in model.graph.node:
        if any(name in targeted for name in node.input):
            targeted.update(node.output)
            found.add(node.name)
    return found
