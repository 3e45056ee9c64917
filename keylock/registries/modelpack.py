"""A bundle as a model artefact: which file is a layer of which kind, and the manifest that lists them.

References:
    CNCF ModelPack, github.com/modelpack/model-spec, media types and annotations of version 1.
    OCI Image Specification 1.1, manifest.md.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from keylock.bundle import Manifest
from keylock.bundle.manifest import DELTA_FILE, MANIFEST_FILE, SEALED_KEY_FILE, SIGNATURE_FILE, check_file_name
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import canonical_json
from keylock.errors import RegistryError
from keylock.registries.client import MANIFEST_TYPE
from keylock.text.printable import printable

__all__ = ["ARTIFACT_TYPE", "CONFIG_TYPE", "SEALED_FILES", "Layer", "describe_artifact", "read_artifact"]

ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
SEALED_FILES: Final = frozenset({SEALED_KEY_FILE, DELTA_FILE})
"""What `--public` leaves out."""

_WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
_SETTINGS: Final = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENT: Final = "application/vnd.cncf.model.doc.v1.raw"
_FILE_PATH: Final = "org.cncf.model.filepath"
_TITLE: Final = "org.opencontainers.image.title"

_WEIGHT_SUFFIXES: Final = (".onnx", ".safetensors")
_DOCUMENT_SUFFIXES: Final = (".md", ".txt", ".png", ".svg")
_MAX_LAYERS: Final = 10_000


class Layer(NamedTuple):
    """A file of a bundle in a registry.

    Attributes:
        name: Its name in the bundle.
        digest: Its digest.
        size: Its size in bytes.
    """

    name: str
    digest: str
    size: int


class _Descriptor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)

    media_type: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = {}


class _ImageManifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)

    schema_version: Literal[2]
    artifact_type: str | None = None
    config: _Descriptor
    layers: Annotated[tuple[_Descriptor, ...], Field(max_length=_MAX_LAYERS)]


def describe_artifact(manifest: Manifest, layers: Sequence[Layer]) -> tuple[bytes, bytes]:
    """Returns configuration and manifest of a bundle's artefact; the same bundle gives the same bytes.

    Args:
        manifest: That of the bundle.
        layers: Its files, in the order in which they are listed.
    """
    config = canonical_json(
        {
            "descriptor": {"createdAt": f"{manifest.created:%Y-%m-%dT%H:%M:%SZ}", "name": manifest.name},
            "config": {
                "architecture": manifest.architecture.name,
                "format": "onnx",
                "precision": "fp32",
                "capabilities": {"inputTypes": ["image"], "outputTypes": ["other"]},
            },
            # Nothing is archived or compressed, so these are the layers' own digests.
            "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        }
    )
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
        "layers": [_descriptor(layer) for layer in layers],
        "annotations": {_TITLE: manifest.name},
    }
    return config, canonical_json(document)


def read_artifact(content: bytes, place: object) -> dict[str, Layer]:
    """Returns the files that a manifest lists, by name.

    Args:
        content: The manifest.
        place: Where it came from, for errors.

    Raises:
        RegistryError: If it is no manifest, or that of something else than a bundle.
    """
    try:
        found = _ImageManifest.model_validate(json.loads(content))
    except (ValidationError, ValueError, RecursionError):
        raise RegistryError(f"{place} is no artefact of one model: it may be an index or of another kind") from None
    kind = found.artifact_type or found.config.media_type
    if kind != ARTIFACT_TYPE:
        raise RegistryError(f"{place} is not a model of ModelPack but {printable(kind[:100])}: check name and tag")
    layers: dict[str, Layer] = {}
    for one in found.layers:
        name = _name_of(one.annotations)
        if name is None or name in layers:
            raise RegistryError(
                f"{place} was not pushed by keylock: its layers are not the files of a bundle, one each"
            )
        layers[name] = Layer(name, one.digest, one.size)
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        if name not in layers:
            raise RegistryError(f"{place} is a model, and not a bundle of keylock: it has no {name}")
    return layers


def _descriptor(layer: Layer) -> dict[str, object]:
    annotations = {_FILE_PATH: layer.name, _TITLE: layer.name}
    return {
        "mediaType": _media_type(layer.name),
        "digest": layer.digest,
        "size": layer.size,
        "annotations": annotations,
    }


def _media_type(name: str) -> str:
    if name.endswith(_WEIGHT_SUFFIXES) or name == DELTA_FILE:
        return _WEIGHT
    return _DOCUMENT if name.endswith(_DOCUMENT_SUFFIXES) else _SETTINGS


def _name_of(annotations: Mapping[str, str]) -> str | None:
    """Returns the name of a file that a bundle may have; None where it is none."""
    try:
        return check_file_name(annotations.get(_FILE_PATH, ""))
    except ValueError:
        return None
