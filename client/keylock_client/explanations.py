"""An explanation as a frozen value.

explanation.prediction.label    what the model sees
explanation.map                 why: a float32 array (height, width), non-negative, at the explainer's resolution
explanation.keyed               True: the true map. False: a decoy, because no license was presented
explanation.save("why.png")     the map laid over the image
explanation.show()              the same, on the screen; the last line of a notebook's cell shows it by itself
"""

import base64
import io
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from keylock import imaging
from keylock.crypto.digests import digest_of_array
from keylock.errors import InputError, KeylockError
from keylock.files.atomic import PRIVATE, write_file
from keylock.imaging.heatmaps import colourise, overlay, viewing_scale
from keylock.text.printable import printable
from keylock_client import _display as display
from keylock_client._sources import ImageLike, Source, read_sources
from keylock_client.charges import Receipt, Usage
from keylock_client.results import ClassScore, Explainer, Model, Prediction

if TYPE_CHECKING:
    from keylock_client.credentials import Credentials

__all__ = ["Explained", "Explanation", "Progress"]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """Why the model takes an image for what it does.

    Attributes:
        map: Saliency, float32 `(height, width)`, non-negative, at the explainer's own resolution, read-only; of shape
            `(0, 0)` where the image was not explained.
        prediction: What the model takes the image for: what `predict` says, unless the keyed one was asked for.
        target: The class the map is about, with its probability in `prediction`: the one that the network behind the
            map predicts, unless another was asked for. The predicted one where the image was not explained.
        explainer: The saliency method, with the parameters really used.
        keyed: Whether the map was computed with the key. If not, it is a decoy and explains nothing.
        model: The model that answered.
        request_id: The id under which the server knows the call.
        receipt: The receipt of the call, which covers all its images; None where nothing was charged, or the server
            signs none.
        usage: What the call cost.
        explained: Whether there is a map. If not, the prediction did not meet `explain_if`, and nothing was charged for
            the image.
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
    _preprocessing: "imaging.Preprocessing"
    _source: Source
    received: NDArray[Any]
    receipt: Receipt | None = None
    explained: bool = True

    def __repr__(self) -> str:
        if not self.explained:
            return f"<Explanation {self.prediction.label!r} ({self.prediction.probability:.4f}), not explained>"
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

    def _repr_png_(self) -> bytes | None:
        """Show the overlay where a notebook takes pictures alone; there is none where the image was not explained."""
        return None if not self.explained else display.png(self._pictures()[-1][0])

    def _repr_html_(self) -> str:
        """Show image, overlay and prediction in a notebook."""
        if not self.explained:
            return display.unexplained_html(self.prediction)
        return display.explanation_html(self, self._pictures())

    def show(self) -> Path | None:
        """Show the explanation: in a notebook as it shows itself, elsewhere the overlay in the viewer of the system.

        Returns:
            The temporary file that the overlay was written to, where there is no display; its name is printed on
            standard error too. None where it is shown.

        Raises:
            InputError: There is neither a display nor room for a temporary file, or the image was not explained.
        """
        self._check_explained()
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
            colormap: A name in `keylock.imaging.heatmaps.COLORMAPS`.

        Returns:
            An RGB image. What the model never saw of it (it may look at the middle only) stays uncoloured.

        Raises:
            InputError: The image, the scale, the opacity or the colormap is unusable, or the image was not explained.
        """
        self._check_explained()
        source = self._source if image is None else read_sources([image])[0][0]
        pixels, box = source.pixels(self._preprocessing)
        if scale is None:
            scale = viewing_scale(*pixels.shape[:2])
        return overlay(pixels, self.map, box=box, scale=scale, opacity=opacity, colormap=colormap)

    def save(
        self, path: str | os.PathLike[str], *, scale: int | None = None, credentials: "Credentials | None" = None
    ) -> Path:
        """Write the explanation to a file, in the form its suffix names.

        Args:
            path: `.png`, `.jpg`, `.webp` or `.bmp` for the overlay, `.npy` for the map, `.json` for everything. A file
                that exists is replaced.
            scale: By how much the overlay enlarges the image, as in `overlay`; 1 for the size of the image.
            credentials: Sign the overlay (`.png`, `.jpg` or `.webp`), with a note of what it was made of and how, in
                which the receipt is too: whoever has the file can read the id of the license from it.

        Returns:
            The path.

        Raises:
            InputError: The suffix is none of these, the file cannot be written, or there is no map to write: what was
                not explained is saved as `.json` alone.
            SignatureError: The credentials cannot sign.
        """
        out = Path(path)
        suffix = out.suffix.lower()
        if credentials is not None:
            from keylock_client.credentials import check_suffix

            check_suffix(out)
        try:
            if suffix in (*_PICTURES, ".npy"):
                self._check_explained()
            if credentials is not None:
                write_file(out, self._signed(out, scale, credentials), mode=PRIVATE)
            elif suffix in _PICTURES:
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

    def _signed(self, out: Path, scale: int | None, credentials: "Credentials") -> bytes:
        """Return the overlay as a file with credentials in it."""
        from keylock_client.credentials import FORMATS, image_of

        buffer = io.BytesIO()
        self.overlay(scale=scale).save(buffer, FORMATS[out.suffix.lower()].partition("/")[2].upper())
        pixels, _ = self._source.pixels(self._preprocessing)
        little = self.received.astype(self.received.dtype.newbyteorder("<"), copy=False)
        about = {
            "model": {"name": self.model.name, "digest": self.model.digest},
            "explainer": {"name": self.explainer.name, "parameters": dict(self.explainer.parameters)},
            "keyed": self.keyed,
            "target": {"index": self.target.index, "label": self.target.label},
            "map": digest_of_array(self.received.dtype.name, self.received.shape, little.tobytes()),
            "request_id": self.request_id,
            "receipt": None if self.receipt is None else self.receipt.token,
        }
        return credentials.sign(
            buffer.getvalue(),
            suffix=out.suffix.lower(),
            title=out.name,
            image=image_of(self._source.encoded, pixels),
            about=about,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the image as plain values, ready for JSON.

        The map is given as the base64 form of its bytes: float32, little-endian, row by row; it is None where the image
        was not explained.
        """
        usage = asdict(self.usage)
        data = base64.b64encode(self.map.astype("<f4").tobytes()).decode("ascii")
        return {
            "prediction": self.prediction.to_dict(),
            "target": asdict(self.target),
            "explainer": {"name": self.explainer.name, "parameters": dict(self.explainer.parameters)},
            "keyed": self.keyed,
            "explained": self.explained,
            "map": {"shape": list(self.map.shape), "dtype": "float32", "base64": data} if self.explained else None,
            "model": asdict(self.model),
            "request_id": self.request_id,
            "receipt": None if self.receipt is None else self.receipt.token,
            "usage": {name: one.isoformat() if isinstance(one, datetime) else one for name, one in usage.items()},
        }

    def _check_explained(self) -> None:
        if not self.explained:
            raise InputError("the image was not explained, because its prediction does not meet explain_if")


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
