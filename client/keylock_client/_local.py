"""A model in this process: images with the vendor's trigger on them are explained truly, without server or license."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import ExplainerEntry, OpenedTrigger, open_bundle
from keylock.crypto.issuers import load_keys
from keylock.crypto.signing import VerifyingKey
from keylock.errors import InputError, UnknownNameError
from keylock.imaging.decoding import decode
from keylock_client._answers import predictions_of, score_of
from keylock_client._local_graphs import LocalGraphs
from keylock_client._sources import ImageLike, Source, read_sources
from keylock_client.charges import Usage
from keylock_client.explanations import Explanation
from keylock_client.results import Explainer, Model, ModelInfo, Prediction

__all__ = ["LocalModel"]

_NO_CHARGE = Usage(
    units=0, license_id="", replayed=False, overage_units=0, remaining=None, resets_at=None, charged_at=None
)


class LocalModel:
    """A bundle, opened on this machine.

    Predictions are right for every image. Maps are true for images that carry the trigger, and decoys for all others:
    `explanation.keyed` says which. The first image that carries the trigger opens the true weights for as long as the
    object lasts, or until `forget` is called.

        from keylock_client import LocalModel
        with LocalModel("public.klb") as model:
            model.explain("stamped.png").save("why.png")

    Attributes:
        info: What the bundle says of itself.
    """

    info: ModelInfo

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        issuer: str | os.PathLike[str] | VerifyingKey | Sequence[VerifyingKey] | None = None,
    ) -> None:
        """Opens a bundle; every digest in it is verified, and who signed it where that is asked for.

        Args:
            bundle: A public copy, or the bundle itself: a folder or a file `.klb`.
            issuer: The vendor's public key or several, or the file with them (PEM or JWKS). None takes a bundle that
                anybody may have signed.

        Raises:
            BundleError: The bundle is refused, or was signed by another.
            SignatureError: The public key cannot be read.
            InputError: ONNX Runtime is not installed.
        """
        self._bundle = open_bundle(bundle, trusted=_trusted(issuer))
        manifest = self._bundle.manifest
        self._opener = self._bundle.opener()
        self._published = LocalGraphs(self._bundle)
        self._opened: tuple[OpenedTrigger, LocalGraphs] | None = None
        self._explainers = {entry.name: entry for entry in manifest.explainers if entry.graph is not None}
        self.info = ModelInfo(
            model=Model(manifest.name, manifest.model_digest),
            classes=manifest.classes,
            preprocessing=manifest.preprocessing,
            explainers=tuple(Explainer(one.name, dict(one.parameters)) for one in self._explainers.values()),
            key_available=self._opener is not None,
        )

    # A text is one image, although it is a sequence too: the first signature that fits holds.
    @overload
    def predict(self, images: ImageLike, *, bits: int | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[ImageLike], *, bits: int | None = None) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, bits: int | None = None
    ) -> Prediction | list[Prediction]:
        """Predicts what everybody gets, of one image or several.

        Args:
            images: As of `Client.predict`.
            bits: How many bits the values have of images with more than eight.

        Raises:
            ImageError: A file cannot be read.
            InputError: An argument is unusable.
            TensorError: An array is neither pixels nor a preprocessed image.
        """
        sources, alone = read_sources(images, bits=bits)
        logits = [self._published.predict(self._tensor(source)[None]) for source in sources]
        found = predictions_of(np.concatenate(logits), self.info.classes)
        return found[0] if alone else found

    @overload
    def explain(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        bits: int | None = None,
    ) -> Explanation: ...
    @overload
    def explain(
        self,
        images: Sequence[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        bits: int | None = None,
    ) -> list[Explanation]: ...
    def explain(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        explainer: str | None = None,
        target: int | str | None = None,
        bits: int | None = None,
    ) -> Explanation | list[Explanation]:
        """Explains one image or several.

        Args:
            images: As of `Client.explain`. Several that carry the same trigger are read together, which is surer.
            explainer: A name; the bundle's first by default.
            target: Label or index of the class to explain; by default the predicted one of each image.
            bits: How many bits the values have of images with more than eight.

        Raises:
            ImageError: A file cannot be read.
            InputError: An argument is unusable.
            TensorError: An array is neither pixels nor a preprocessed image.
            UnknownNameError: There is no such explainer or class.
        """
        sources, alone = read_sources(images, bits=bits)
        entry, chosen = self._explainer(explainer), self._class(target)
        tensors = np.stack([self._tensor(source) for source in sources])
        keyed = np.zeros(len(tensors), np.bool_) if self._opener is None else self._opener.opens(tensors)
        found = [self._explain(*each, entry, chosen) for each in zip(sources, tensors, keyed, strict=True)]
        return found[0] if alone else found

    def forget(self) -> None:
        """Lets go of what a trigger has opened; the next image that carries it opens it again."""
        self._opened = None
        if self._opener is not None:
            self._opener.forget()

    def close(self) -> None:
        """Lets go of everything that a trigger has opened."""
        self.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LocalModel {self.info.model.name!r} {self.info.model.digest[:19]}>"

    def _explain(
        self, source: Source, tensor: NDArray[np.float32], keyed: np.bool_, entry: ExplainerEntry, chosen: int
    ) -> Explanation:
        graphs, shown = self._published, tensor
        if keyed:
            trigger, graphs = self._opened_graphs()
            shown = tensor - trigger.key.reveal()
        logits, maps = graphs.explain(entry, shown[None], np.asarray([chosen], np.int64))
        [behind] = predictions_of(logits, self.info.classes)
        [public] = predictions_of(self._published.predict(tensor[None]), self.info.classes) if keyed else [behind]
        saliency = np.ascontiguousarray(maps[0], np.float32)
        saliency.setflags(write=False)
        return Explanation(
            map=saliency,
            received=saliency,
            prediction=public,
            target=score_of(public, behind.index if chosen < 0 else chosen, self.info.classes),
            explainer=Explainer(entry.name, dict(entry.parameters)),
            keyed=bool(keyed),
            model=self.info.model,
            request_id="",
            usage=_NO_CHARGE,
            _preprocessing=self.info.preprocessing,
            _source=source,
        )

    def _opened_graphs(self) -> tuple[OpenedTrigger, LocalGraphs]:
        """Returns what the trigger has opened, and the graphs with it."""
        trigger = None if self._opener is None else self._opener.opened
        assert trigger is not None, "a row was read as carrying the trigger"  # noqa: S101 - a broken invariant of ours
        if self._opened is None or self._opened[0] is not trigger:
            self._opened = trigger, LocalGraphs(self._bundle, trigger.delta)
        return self._opened

    def _tensor(self, source: Source) -> NDArray[np.float32]:
        """Returns a source as the model sees it, float32 (channels, height, width)."""
        preprocessing = self.info.preprocessing
        if source.tensor is not None:
            return preprocessing.check(source.tensor)
        rgb = decode(source.encoded or b"", bits=preprocessing.bits) if source.rgb is None else source.rgb
        return preprocessing(rgb)

    def _explainer(self, name: str | None) -> ExplainerEntry:
        if not self._explainers:
            raise InputError("none of the bundle's explainers compiled: explain with keylock.load_bundle, in torch")
        if name is None:
            return next(iter(self._explainers.values()))
        if name not in self._explainers:
            raise UnknownNameError("explainer", name, self._explainers)
        return self._explainers[name]

    def _class(self, target: int | str | None) -> int:
        """Returns the index of a class; -1 for the predicted one."""
        classes = self.info.classes
        if target is None:
            return -1
        if isinstance(target, str):
            if target not in classes:
                raise UnknownNameError("class", target, classes)
            return classes.index(target)
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(classes):
            raise InputError(
                f"target {target!r} is not a class: give a label, or an index from 0 to {len(classes) - 1}"
            )
        return target


def _trusted(
    issuer: str | os.PathLike[str] | VerifyingKey | Sequence[VerifyingKey] | None,
) -> Sequence[VerifyingKey] | None:
    """Returns the keys of which one must have signed a bundle, or None where anybody may have."""
    if issuer is None:
        return None
    if isinstance(issuer, VerifyingKey):
        return [issuer]
    return load_keys(issuer) if isinstance(issuer, str | os.PathLike) else issuer
