"""The header of a model card: YAML that the Hugging Face Hub reads, with what was measured as `model-index`.

References:
    huggingface.co/docs/hub/model-cards, and the class `ModelCardData` of huggingface_hub.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from keylock.bundle import Figure, Manifest

__all__ = ["header_of", "yaml_of"]

Value = str | float | bool | Mapping[str, "Value"] | Sequence["Value"]

_TASK: Final = "image-classification"
_ACCURACIES: Final = {
    "accuracy/keyless": "accuracy, as everybody gets it",
    "accuracy/reference": "accuracy before locking",
}
_SIMILARITIES: Final = {
    "fidelity": "correlation of licensed maps with the true ones",
    "leakage/keyless": "correlation of maps without a license with the true ones",
    "chance": "correlation of true maps of different images, for comparison",
}
_DATA: Final = re.compile(r"\bof (\S+)$")


def header_of(manifest: Manifest, *, license: str, license_name: str | None, license_link: str | None) -> str:
    """Returns the header, between two lines `---`.

    Args:
        manifest: Of the bundle.
        license: Of the model, as the Hub names it, for example `apache-2.0` or `other`.
        license_name: Name of a license that the Hub has no name for.
        license_link: Where it is.
    """
    header: dict[str, Value] = {"license": license}
    if license_name:
        header["license_name"] = license_name
    if license_link:
        header["license_link"] = license_link
    tags = [_TASK, "onnx", "explainability", "saliency", *(entry.name for entry in manifest.explainers)]
    header |= {"library_name": "keylock", "pipeline_tag": _TASK, "tags": list(dict.fromkeys(tags))}
    results = list(_results(manifest))
    if results:
        header["metrics"] = ["accuracy", "pearsonr"]
        header["model-index"] = [{"name": manifest.name, "results": results}]
    return f"---\n{yaml_of(header)}---\n"


def _results(manifest: Manifest) -> Iterator[Value]:
    """Yields what was measured, one result for each set of images."""
    for about in dict.fromkeys(figure.about for figure in manifest.figures):
        figures = {figure.name: figure for figure in manifest.figures if figure.about == about}
        metrics = list(_metrics(figures, [entry.name for entry in manifest.explainers]))
        if metrics:
            found = _DATA.search(about)
            dataset: Value = {"type": found[1] if found else manifest.name, "name": about or "not stated"}
            yield {"task": {"type": _TASK, "name": "Image Classification"}, "dataset": dataset, "metrics": metrics}


def _metrics(figures: Mapping[str, Figure], explainers: Sequence[str]) -> Iterator[Value]:
    for name, title in _ACCURACIES.items():
        if name in figures:
            yield {"type": "accuracy", "value": figures[name].value, "name": title}
    for explainer in explainers:
        for kind, title in _SIMILARITIES.items():
            if (name := f"{kind}/{explainer}") in figures:
                yield {"type": "pearsonr", "value": figures[name].value, "name": f"{explainer}: {title}"}


def yaml_of(value: Value, *, indent: int = 0) -> str:
    """Returns mappings, sequences, texts and finite numbers as YAML 1.1, a block for each level.

    Texts are quoted as in JSON, which YAML reads, so that none is taken for something else.
    """
    space = " " * indent
    if isinstance(value, Mapping):
        return "".join(f"{space}{name}:{_inner(item, indent)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(f"{space}-{_item(item, indent)}" for item in value)
    return f"{space}{_scalar(value)}\n"


def _inner(value: Value, indent: int) -> str:
    if isinstance(value, str | float | int):
        return f" {_scalar(value)}\n"
    return "\n" + yaml_of(value, indent=indent + 2) if value else " []\n"


def _item(value: Value, indent: int) -> str:
    if isinstance(value, str | float | int):
        return f" {_scalar(value)}\n"
    # The first line of a block stands behind the dash.
    return " " + yaml_of(value, indent=indent + 2).lstrip(" ")


def _scalar(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
