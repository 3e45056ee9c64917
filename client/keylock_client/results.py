"""What a server answered, as frozen values.

explanation.prediction.label    what the model sees
explanation.map                 why: a float32 array (height, width), non-negative, at the explainer's resolution
explanation.keyed               True: the true map. False: a decoy, because no license was presented
explanation.save("why.png")     the map laid over the image
explanation.show()              the same, on the screen; the last line of a notebook's cell shows it by itself
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from keylock.errors import InputError, KeylockError
from keylock.heatmaps import colourise, overlay, viewing_scale
from keylock.preprocessing import Preprocessing
from keylock.printable import printable
from keylock.replacing import PRIVATE, write_file
from keylock_client import _display as display
from keylock_client._limits import RequestLimits
from keylock_client._sources import ImageLike, Source, read_sources

__all__ = [
    "ClassScore",
    "Estimate",
    "Explained",
    "Explainer",
    "Explanation",
    "LicenseInfo",
    "Model",
    "ModelInfo",
    "Prediction",
    "Progress",
    "Proof",
    "Quota",
    "Receipt",
    "RequestLimits",
    "Usage",
]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and how probable it is.

    Attributes:
        label: Name of the class.
        index: Its place among the classes of the model.
        probability: 0 to 1.
    """

    label: str
    index: int
    probability: float

    def __repr__(self) -> str:
        return f"ClassScore({self.label!r}, {self.probability:.4f})"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model takes an image for.

    Attributes:
        label: Name of the most probable class.
        index: Its place among the classes of the model.
        probability: How probable it is, 0 to 1.
        top: The most probable classes, best first, five at most.
        logits: The output of the model, one number for each class.
        keyed: Whether it was made with the key. If not, it is the public one, which everybody gets for this image.
    """

    label: str
    index: int
    probability: float
    top: tuple[ClassScore, ...]
    logits: tuple[float, ...] = field(repr=False)
    keyed: bool = False

    def __repr__(self) -> str:
        return f"Prediction({self.label!r}, {self.probability:.4f}{', keyed' if self.keyed else ''})"

    def _repr_html_(self) -> str:
        """Show the most probable classes in a notebook."""
        return display.prediction_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain values, ready for JSON."""
        return {
            "label": self.label,
            "index": self.index,
            "probability": self.probability,
            "top": [{"label": one.label, "index": one.index, "probability": one.probability} for one in self.top],
            "logits": list(self.logits),
            "keyed": self.keyed,
        }


@dataclass(frozen=True, slots=True)
class Explainer:
    """The saliency method behind a map.

    Attributes:
        name: For example `grad_cam`.
        parameters: Those really used.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream of images is.

    Attributes:
        answered: Images that are done, failures among them.
        failed: Those of them that could not be explained.
        total: How many there will be; None where that is not known.
    """

    answered: int
    failed: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """The model that answered.

    Attributes:
        name: The vendor's name for it.
        digest: `sha256:` and the digest of its weights and graphs.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model, as the server describes it to everybody.

    Attributes:
        model: Name and digest.
        classes: Names of the classes, in the order of the logits.
        preprocessing: How images become inputs; call it on uint8 pixels to get the tensor the model sees.
        explainers: The saliency methods on offer; the first is used when none is asked for.
        key_available: Whether a license leads to true maps on this server.
        limits: What the server takes of one request.
        signs_receipts: Whether every answer that is charged has a receipt.
    """

    model: Model
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    explainers: tuple[Explainer, ...]
    key_available: bool
    limits: RequestLimits = field(default_factory=RequestLimits)
    signs_receipts: bool = False

    def __repr__(self) -> str:
        names = printable(", ".join(one.name for one in self.explainers))
        maps = "keyed maps with a license" if self.key_available else "decoys only"
        model = f"{self.model.name!r} {printable(self.model.digest[:19])}"
        return f"<ModelInfo {model}, {len(self.classes)} classes, {names}, {maps}>"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a license may use in a period, and has used.

    Attributes:
        period: `day`, `month` (both in UTC) or `total`.
        limit: Units; None where there is no limit.
        used: Units that are charged, or reserved for calls that run.
        resets_at: When it is filled again (UTC); None for the total.
    """

    period: str
    limit: int | None
    used: int
    resets_at: datetime | None

    @property
    def remaining(self) -> int | None:
        """Units that are left; None where there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. A long list of images is sent in several calls, and each explanation has that of its own.

    Attributes:
        units: Units charged for the call, all its images together; 0 without a license.
        license_id: The license that paid; empty without one.
        replayed: Whether an earlier call with the same request id was charged, so that this one cost nothing.
        overage_units: Units that were beyond the quota.
        remaining: Units that are left in the period with the fewest left; None where nothing is limited.
        resets_at: When that period is filled again (UTC); None for the total.
        charged_at: When it was charged (UTC); None where nothing was.
    """

    units: int
    license_id: str
    replayed: bool
    overage_units: int
    remaining: int | None
    resets_at: datetime | None
    charged_at: datetime | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would cost.

    Attributes:
        explainer: The explainer it is for.
        units: What it would cost with a license.
        units_per_image: What one image costs.
        fits: Whether it fits what the license has left now; nothing is set aside.
        quotas: Those of the license, one for each period; empty without one.
    """

    explainer: str
    units: int
    units_per_image: int
    fits: bool
    quotas: tuple[Quota, ...]


@dataclass(frozen=True, slots=True)
class LicenseInfo:
    """What the caller's license grants. The token itself is not in here.

    Attributes:
        id: Id of the license.
        customer: Whom it was issued to.
        models: Names or digests of models; `*` stands for all.
        explainers: Names of explainers; `*` stands for all.
        issued_at: When it was issued (UTC).
        not_before: When it begins to hold (UTC).
        expires: When it ends (UTC).
        max_images: Most images in a call; None where the server's limit is the only one.
        max_pixels: Most pixels of an image; None where the server's limit is the only one.
        rate: Images a second, on average, and at once; None where there is no limit.
    """

    id: str
    customer: str
    models: tuple[str, ...]
    explainers: tuple[str, ...]
    issued_at: datetime
    not_before: datetime
    expires: datetime
    max_images: int | None = None
    max_pixels: int | None = None
    rate: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The vendor's signed word of what was charged and answered; it was verified when the answer came.

    Attributes:
        token: The receipt itself. Keep it: it is what an auditor checks.
        license_id: The license that paid.
        request_id: The call.
        model_digest: The model that answered.
        explainer: Name of the saliency method.
        parameters: Those really used.
        keyed: Whether the maps are true ones.
        units: What the call cost, all images together.
        time: When it was charged (UTC).
        image_digests: Digests of the images as they were sent, in order.
        map_digests: Digests of the maps as they were answered, in order.
        target: Index of the class that was asked for; -1 for the predicted one of each image.
        repeated: Whether it is for another answer to the same request than the one that was charged: computed again,
            a map can come out different in its last bits. Nothing is charged for it.
        issuer: Id of the key of the vendor who certified the key that signed.
        trusted: Whether that vendor is the one who issued the license, or was named; False where the client knew
            nobody to compare with.
    """

    token: str = field(repr=False)
    license_id: str
    request_id: str
    model_digest: str
    explainer: str
    parameters: Mapping[str, Any]
    keyed: bool
    units: int
    time: datetime
    image_digests: tuple[str, ...] = field(repr=False)
    map_digests: tuple[str, ...] = field(repr=False)
    target: int
    repeated: bool
    issuer: str
    trusted: bool

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the token to a file, over one that is there.

        Raises:
            InputError: If the file cannot be written.
        """
        return _write_text(Path(path), self.token + "\n")


@dataclass(frozen=True, slots=True)
class Proof:
    """That a receipt is in the vendor's log; it was verified when it came.

    Attributes:
        text: The proof itself, in the format of C2SP: an auditor checks it with `keylock receipt verify --proof`.
        index: The place of the charge in the log, from 0.
        size: Entries the log had.
        log: Name of the log.
        checkpoint: The signed state of the log. Keep it: later proofs show that the log goes on from it.
    """

    text: str = field(repr=False)
    index: int
    size: int
    log: str
    checkpoint: str = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the proof to a file, over one that is there.

        Raises:
            InputError: If the file cannot be written.
        """
        return _write_text(Path(path), self.text)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """Why the model takes an image for what it does.

    Attributes:
        map: Saliency, float32 `(height, width)`, non-negative, at the explainer's own resolution, read-only.
        prediction: What the model takes the image for: what `predict` says, unless the keyed one was asked for.
        target: The class the map is about, with its probability in `prediction`: the one that the network behind the
            map predicts, unless another was asked for.
        explainer: The saliency method, with the parameters really used.
        keyed: Whether the map was computed with the key. If not, it is a decoy and explains nothing.
        model: The model that answered.
        request_id: The id under which the server knows the call.
        receipt: The receipt of the call, which covers all its images; None where nothing was charged, or the server
            signs none.
        usage: What the call cost.
        received: The map as it travelled, read-only: in the type that was asked for, and what the receipt is about.
    """

    map: NDArray[np.float32]
    prediction: Prediction
    target: ClassScore
    explainer: Explainer
    keyed: bool
    model: Model
    request_id: str
    usage: Usage
    _preprocessing: Preprocessing
    _source: Source
    received: NDArray[Any]
    receipt: Receipt | None = None

    def __repr__(self) -> str:
        height, width = self.map.shape
        kind = "keyed" if self.keyed else "decoy"
        target = "" if self.target.index == self.prediction.index else f" target={self.target.label!r}"
        return (
            f"<Explanation {self.prediction.label!r} ({self.prediction.probability:.4f}){target} "
            f"by {printable(self.explainer.name)}, {kind} map {height}x{width}>"
        )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the map, so that NumPy and what builds on it take an explanation for its map.

        Args:
            dtype: Type of the elements; float32 if left out.
            copy: Whether to copy; None copies only where the type asks for it, as NumPy 2 has it.

        Returns:
            The map `(height, width)`: the read-only one itself, unless it was copied.

        Raises:
            ValueError: `copy` is False and the type asks for a copy.
        """
        if copy is False and dtype is not None and np.dtype(dtype) != self.map.dtype:
            raise ValueError(f"a map of {self.map.dtype} cannot become {np.dtype(dtype)} without a copy")
        return self.map.astype(dtype or self.map.dtype, copy=bool(copy))

    def _repr_png_(self) -> bytes:
        """Show the overlay where a notebook takes pictures alone."""
        return display.png(self._pictures()[-1][0])

    def _repr_html_(self) -> str:
        """Show image, overlay and prediction in a notebook."""
        return display.explanation_html(self, self._pictures())

    def show(self) -> Path | None:
        """Show the explanation: in a notebook as it shows itself, elsewhere the overlay in the viewer of the system.

        Returns:
            The temporary file that the overlay was written to, where there is no display; its name is printed on
            standard error too. None where it is shown.

        Raises:
            InputError: There is neither a display nor room for a temporary file.
        """
        return display.show(self._pictures()[-1][0], self)

    def _pictures(self) -> list[tuple[Image.Image, str]]:
        """Return the image and the overlay, or the map alone where the image cannot be read here."""
        text = f"what {self.target.label} is seen in"
        try:
            pixels, _ = self._source.pixels(self._preprocessing)
        except KeylockError:
            alone = display.fitted(Image.fromarray(colourise(self.map)))
            scale = viewing_scale(alone.height, alone.width)
            return [(alone.resize((alone.width * scale, alone.height * scale), Image.Resampling.NEAREST), text)]
        # Made smaller before it is drawn on, because photographs are large and notebooks are not.
        image = display.fitted(Image.fromarray(pixels))
        hot = self.overlay(image)
        return [(image.resize(hot.size, Image.Resampling.NEAREST), "the image"), (hot, text)]

    def overlay(
        self,
        image: ImageLike | None = None,
        *,
        scale: int | None = None,
        opacity: float = 0.75,
        colormap: str = "ember",
    ) -> Image.Image:
        """Lay the map over the image.

        Args:
            image: The image to draw on, framed like the one that was explained; that one itself if left out.
            scale: How many pixels wide and high each pixel of the image becomes; 1 for the size of the image. If left
                out, small images are enlarged until the longer side has 256 pixels or more.
            opacity: How much the hottest pixel hides of the image, 0 to 1.
            colormap: A name in `keylock.heatmaps.COLORMAPS`.

        Returns:
            An RGB image. What the model never saw of it (it may look at the middle only) stays uncoloured.

        Raises:
            InputError: The image, the scale, the opacity or the colormap is unusable.
        """
        source = self._source if image is None else read_sources([image])[0][0]
        pixels, box = source.pixels(self._preprocessing)
        if scale is None:
            scale = viewing_scale(*pixels.shape[:2])
        return overlay(pixels, self.map, box=box, scale=scale, opacity=opacity, colormap=colormap)

    def save(self, path: str | os.PathLike[str], *, scale: int | None = None) -> Path:
        """Write the explanation to a file, in the form its suffix names.

        Args:
            path: `.png`, `.jpg`, `.webp` or `.bmp` for the overlay, `.npy` for the map, `.json` for everything. A file
                that exists is replaced.
            scale: By how much the overlay enlarges the image, as in `overlay`; 1 for the size of the image.

        Returns:
            The path.

        Raises:
            InputError: The suffix is none of these, or the file cannot be written.
        """
        out = Path(path)
        suffix = out.suffix.lower()
        try:
            if suffix in _PICTURES:
                picture = self.overlay(scale=scale)
                write_file(out, b"", mode=PRIVATE)
                picture.save(out)
            elif suffix == ".npy":
                write_file(out, b"", mode=PRIVATE)
                np.save(out, self.map, allow_pickle=False)
            elif suffix == ".json":
                write_file(out, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", mode=PRIVATE)
            else:
                known = ", ".join((*_PICTURES, ".npy", ".json"))
                raise InputError(f"cannot save an explanation as {str(out)!r}: end the name with one of {known}")
        except OSError as error:
            raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the image as plain values, ready for JSON.

        The map is given as the base64 form of its bytes: float32, little-endian, row by row.
        """
        target = {"label": self.target.label, "index": self.target.index, "probability": self.target.probability}
        data = base64.b64encode(self.map.astype("<f4").tobytes()).decode("ascii")
        return {
            "prediction": self.prediction.to_dict(),
            "target": target,
            "explainer": {"name": self.explainer.name, "parameters": dict(self.explainer.parameters)},
            "keyed": self.keyed,
            "map": {"shape": list(self.map.shape), "dtype": "float32", "base64": data},
            "model": {"name": self.model.name, "digest": self.model.digest},
            "request_id": self.request_id,
            "receipt": None if self.receipt is None else self.receipt.token,
            "usage": {
                "units": self.usage.units,
                "license_id": self.usage.license_id,
                "replayed": self.usage.replayed,
                "overage_units": self.usage.overage_units,
                "remaining": self.usage.remaining,
                "resets_at": None if self.usage.resets_at is None else self.usage.resets_at.isoformat(),
                "charged_at": None if self.usage.charged_at is None else self.usage.charged_at.isoformat(),
            },
        }


def _write_text(out: Path, text: str) -> Path:
    try:
        write_file(out, text, mode=PRIVATE)
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """One image of a stream, explained or not.

    Attributes:
        number: Its place among the images, from 0. Results come as they are ready, in any order.
        name: Its path, or what messages call it.
        error: Why it was not explained; None where it was. Nothing was charged for it then.
        progress: How far the stream is, with this image.
    """

    number: int
    name: str
    error: KeylockError | None
    progress: Progress
    _explanation: Explanation | None

    def __repr__(self) -> str:
        return f"<Explained {self.number}: {self.name!r}, {'failed' if self.error else 'explained'}>"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the map, as `Explanation` does; raises `error`, where the image was not explained."""
        return self.explanation.__array__(dtype, copy)

    def _repr_png_(self) -> bytes | None:
        """Show the overlay; there is none of an image that was not explained."""
        return None if self._explanation is None else self._explanation._repr_png_()

    def _repr_html_(self) -> str:
        """Show the explanation in a notebook, or why there is none."""
        if self._explanation is None:
            return display.failure_html(self.name, str(self.error))
        return self._explanation._repr_html_()

    def show(self) -> Path | None:
        """Show the explanation, as `Explanation.show` does.

        Raises:
            KeylockError: `error`, where the image was not explained.
        """
        return self.explanation.show()

    @property
    def explanation(self) -> Explanation:
        """The explanation.

        Raises:
            KeylockError: `error`, where the image was not explained.
        """
        if self._explanation is None:
            raise self.error or InputError(f"{self.name} was not explained")
        return self._explanation
