"""The manifest: everything a bundle says about itself, and the digests that tie it to its files.

What is signed is `Manifest.canonical()`, byte for byte the file `manifest.json`. Whoever has verified these bytes may
believe all of it. Field by field: docs/bundle-format.md.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from keylock.bundle.key_entry import KeyEntry
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import VerifyingKey, canonical_json
from keylock.errors import BundleError, DataError, InputError
from keylock.imaging.preprocessing import Preprocessing
from keylock.text.class_names import normalise_class_names

__all__ = [
    "DELTA_FILE",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "MODEL_SIGNATURE_FILE",
    "SEALED_KEY_FILE",
    "SIGNATURE_FILE",
    "STATISTICS_FILE",
    "WEIGHTS_FILE",
    "Architecture",
    "Decoy",
    "DeltaEntry",
    "ExplainerEntry",
    "Figure",
    "Issuer",
    "Manifest",
    "VariantEntry",
    "check_file_name",
    "check_model_name",
    "model_digest_of",
]

FORMAT_VERSION: Final = 2
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
SEALED_KEY_FILE: Final = "key.sealed"
DELTA_FILE: Final = "delta.sealed"
MODEL_SIGNATURE_FILE: Final = "model.sig"
WEIGHTS_FILE: Final = "weights.safetensors"
STATISTICS_FILE: Final = "trigger.statistics"
_GRAPHS: Final = "graphs/"

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}")
_MAX_FILE_NAME: Final = 200
_MODEL_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def check_file_name(name: str) -> str:
    """Returns the name of a file in a bundle when it is a plain relative one.

    Raises:
        ValueError: If it could mean a place outside the bundle (`..`, an absolute path, a drive, a backslash) or is
            not made of letters, digits, `.`, `_` and `-`.
    """
    if len(name) > _MAX_FILE_NAME or not _FILE_NAME.fullmatch(name) or any(p.endswith(".") for p in name.split("/")):
        raise ValueError(f"{name!r} is not allowed as the name of a file in a bundle")
    return name


def _check_printable(text: str) -> str:
    # A manifest from anybody is shown on terminals, which obey control characters.
    if not text.isprintable():
        raise ValueError("it must be printable text on one line")
    return text


def _check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    # They are not put right here: what is signed is what is written in the file.
    try:
        normal = normalise_class_names(names, source="the classes")
    except DataError as error:
        raise ValueError(error.message) from None
    for name, spelt in zip(names, normal, strict=True):
        if name != spelt:
            raise ValueError(f"the class name {name!r} must be spelt {spelt!r}, in Unicode form NFC")
    return names


FileName = Annotated[str, AfterValidator(check_file_name)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC).replace(microsecond=0))]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1000), AfterValidator(_check_printable)]
Name = Annotated[str, Field(pattern=rf"^{_MODEL_NAME}$")]
ExplainerName = Annotated[str, Field(pattern=rf"^(captum:)?{_MODEL_NAME}$")]


def check_model_name(name: str) -> str:
    """Returns the name of a model when bundles and licenses can carry it.

    Raises:
        InputError: If they cannot.
    """
    if not re.fullmatch(_MODEL_NAME, name):
        raise InputError(
            f"the name {name!r} is not a name for a model: use letters, digits, '.', '_' and '-', at most 64 of them"
        )
    return name


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Entry):
    """How to build the network that the weights fit.

    Attributes:
        name: Name in the registry of models, or a description where `module` is `graph_only`.
        num_classes: Number of logits.
        options: What the registry's function is called with.
        module: `registry` when keylock can build the torch module, `graph_only` when only the graphs are of use.
    """

    name: Annotated[Text, Field(min_length=1)]
    num_classes: Annotated[int, Field(ge=1)]
    options: dict[str, JsonValue] = {}
    module: Literal["registry", "graph_only"] = "registry"


class VariantEntry(_Entry):
    """A graph in reduced precision, with what was measured of it at export.

    Attributes:
        graph: Its file.
        agreement: Share of images whose predicted class is that of the graph in float32.
        keyed_pcc: Mean correlation of keyed maps with those in float32; None for predictions.
        leakage: Mean correlation of keyless maps with keyed ones in float32.
        leakage_float32: The same of keyless maps in float32.
    """

    graph: FileName
    agreement: Number
    keyed_pcc: Number | None = None
    leakage: Number | None = None
    leakage_float32: Number | None = None


Variants = dict[Name, VariantEntry]


class ExplainerEntry(_Entry):
    """One explainer the bundle offers.

    Attributes:
        name: Name in the registry of explainers, or `captum:` and a method of Captum.
        parameters: The parameters it was locked and compiled with.
        runtime: `onnx` when `graph` computes it, `loop` when it is a loop over the answers of `graph`, `torch` when it
            could not be compiled.
        graph: The file of its graph; loops that read the same share one.
        predictions: For loops over gradients the file of the graph that gives the logits; `graph` then answers with
            sums of gradients. None for all others.
        max_difference: Largest difference between graph and reference, measured at export.
        pcc_to_reference: Smallest correlation between graph and reference, measured at export.
        variants: Its graph in reduced precision, by their names.
    """

    name: ExplainerName
    parameters: dict[str, JsonValue] = {}
    runtime: Literal["onnx", "loop", "torch"] = "onnx"
    graph: FileName | None = None
    predictions: FileName | None = None
    max_difference: Number | None = None
    pcc_to_reference: Number | None = None
    variants: Variants = {}

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        if (self.runtime == "torch") != (self.graph is None):
            raise ValueError(f"explainer {self.name}: a graph is needed, but for the runtime torch, which has none")
        return self


class DeltaEntry(_Entry):
    """What is public about the sealed delta.

    Attributes:
        digest: Digest of `delta.sealed`.
        entries: How many entries of the weights it changes.
        keys: How many triggers open it.
    """

    digest: Digest
    entries: Annotated[int, Field(ge=1)]
    keys: Annotated[int, Field(ge=1)]


class Decoy(_Entry):
    """What the keyless maps were trained towards.

    Attributes:
        name: Name in the registry of decoys.
        parameters: Its parameters.
    """

    name: Name
    parameters: dict[str, JsonValue] = {}


class Figure(_Entry):
    """One measured figure.

    Attributes:
        name: What was measured, for example `keyed_pcc/grad_cam`.
        value: The figure.
        low: Lower end of its 95 % confidence interval.
        high: Upper end of it.
        unit: For example `correlation`, `fraction` or `seconds`.
        about: On what it was measured, in one sentence.
    """

    name: Annotated[Text, Field(min_length=1)]
    value: Number
    low: Number | None = None
    high: Number | None = None
    unit: Text = ""
    about: Text = ""


class Issuer(_Entry):
    """Who signed.

    Attributes:
        key_id: Names the key.
        public_key: The key as a JWK; whether it is to be trusted, the bundle cannot say.
    """

    key_id: str
    public_key: dict[str, str]

    @classmethod
    def of(cls, key: VerifyingKey) -> "Issuer":
        """Returns the entry for a key."""
        return cls(key_id=key.key_id, public_key=key.to_jwk())


class Manifest(_Entry):
    """Everything a bundle says about itself.

    Attributes:
        format_version: Of this format; another one is refused.
        name: The model's name: what clients ask for and licenses grant.
        created: When, in UTC.
        keylock_version: Of the program that wrote it.
        architecture: How to build the network.
        classes: Labels, in the order of the logits, spelt as `keylock.text.class_names` does.
        preprocessing: From pixels to the network's input.
        explainers: The explainers it offers.
        prediction_graph: The file of the graph that predicts.
        prediction_variants: The same in reduced precision, by their names.
        key: What is public about the key.
        delta: What is public about the sealed delta; None where the network itself tells the trigger.
        decoy: What the keyless maps were trained towards.
        figures: What was measured after locking.
        training: The settings it was locked with.
        reference_digest: Digest of the reference model's weights.
        model_digest: Digest of weights and graphs: the identity of the model.
        files: Digest of every file, except the manifest, its signatures, the sealed key and the sealed delta.
        sealed_key: Digest of the sealed key, also when the copy at hand comes without it.
        issuer: Who signed.
    """

    format_version: Literal[2] = FORMAT_VERSION
    name: Name
    created: Moment
    keylock_version: Text
    architecture: Architecture
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_class_names)]
    preprocessing: Preprocessing
    explainers: tuple[ExplainerEntry, ...]
    prediction_graph: FileName
    prediction_variants: Variants = {}
    key: KeyEntry
    delta: DeltaEntry | None = None
    decoy: Decoy
    figures: tuple[Figure, ...] = ()
    training: dict[str, JsonValue] = {}
    reference_digest: Digest | None = None
    model_digest: Digest
    files: dict[FileName, Digest]
    sealed_key: Digest | None = None
    issuer: Issuer

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if len(self.classes) != self.architecture.num_classes:
            raise ValueError(f"{len(self.classes)} classes for {self.architecture.num_classes} logits")
        _check_distinct("explainer", [entry.name for entry in self.explainers])
        _check_distinct("file", [name.lower() for name in self.files])
        of_explainers = [file for entry in self.explainers for file in (entry.graph, entry.predictions)]
        needed = [self.prediction_graph, *(file for file in of_explainers if file is not None)]
        for variants in (self.prediction_variants, *(entry.variants for entry in self.explainers)):
            needed += [variant.graph for variant in variants.values()]
        if self.architecture.module == "registry" or self.delta is not None:
            needed.append(WEIGHTS_FILE)
        if self.delta is not None:
            needed.append(STATISTICS_FILE)
        for name in needed:
            if name not in self.files:
                raise ValueError(f"the file {name} is needed and not listed")
        for name in (MANIFEST_FILE, SIGNATURE_FILE, SEALED_KEY_FILE, DELTA_FILE, MODEL_SIGNATURE_FILE):
            if name in self.files:
                raise ValueError(f"the file name {name} is reserved")
        if self.model_digest != model_digest_of(self.files):
            raise ValueError("the model digest is not that of the listed files")
        return self

    def canonical(self) -> bytes:
        """Returns the bytes of `manifest.json`, which are what is signed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of all numbers in which there are graphs beside float32, sorted."""
        all_of_them = (self.prediction_variants, *(entry.variants for entry in self.explainers))
        return tuple(sorted({name for variants in all_of_them for name in variants}))

    def explainer(self, name: str) -> ExplainerEntry | None:
        """Returns the entry of an explainer, or None where the bundle does not offer it."""
        return next((entry for entry in self.explainers if entry.name == name), None)


def model_digest_of(files: Mapping[str, str]) -> str:
    """Returns the digest that identifies a model: over the digests of its weights and graphs.

    Args:
        files: Digest of every file by name; those that are neither weights nor graphs do not count.

    Raises:
        BundleError: If there are neither weights nor graphs.
    """
    counted = {name: digest for name, digest in files.items() if name == WEIGHTS_FILE or name.startswith(_GRAPHS)}
    if not counted:
        raise BundleError(f"a bundle needs {WEIGHTS_FILE} or graphs in {_GRAPHS}")
    return digest_of(canonical_json(counted))


def _check_distinct(kind: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"the {kind} {name!r} is listed twice")
