"""What a model answers to images of a job, in the form in which a server does: predictions for all, maps for some."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keylock.bulk.job import Asked
from keylock.bulk.parts import Explained, Predicted
from keylock.licensing.conditions import Condition
from keylock.v1 import explanation_pb2 as pb
from keylock_server.inference.runtime import Explained as Computed
from keylock_server.inference.runtime import ServedModel, check_finite
from keylock_server.services.explanation_answers import (
    Written,
    choose,
    encode,
    encode_maps,
    encode_predictions,
    softmax,
)
from keylock_server.services.model_descriptions import describe_explainer

__all__ = ["Answerer"]


class Answerer:
    """Predicts and explains preprocessed images, as a job asks for it."""

    def __init__(self, model: ServedModel, asked: Asked) -> None:
        """Takes a model with its key.

        Raises:
            UnknownNameError: If the model has not that explainer.
            InputError: If the condition of the job is none, or about a class that the model does not have.
        """
        self._model, self._asked, self._classes = model, asked, model.manifest.classes
        self._condition = None if asked.explain_if is None else Condition.parse(asked.explain_if, self._classes)
        self._entry = model.explainer(asked.explainer)
        self._described = describe_explainer(self._entry)
        self._shape: tuple[int, ...] | None = None

    @property
    def explainer(self) -> str:
        """Name of the saliency method."""
        return self._entry.name

    def answer(self, images: NDArray[np.float32], again: Iterator[bool] | None = None) -> Written:
        """Predicts all images, and explains those whose public prediction meets the condition, if there is one.

        Args:
            images: Preprocessed, `(batch, channels, height, width)`.
            again: Tells of each image whether it is explained, because it was when it was charged; None where the
                condition decides.

        Raises:
            TensorError: If the model gives values that are not finite.
        """
        if self._condition is not None:
            return self._answer_some(images, self._condition, again)
        asked, model = self._asked, self._model
        computed = self._explain(images, keyed=asked.keyed)
        # Without the key the prediction behind the map is what everybody gets.
        public = model.predict(images) if asked.keyed and asked.prediction == "public" else None
        return encode(
            pb.ExplainResponse(),
            computed,
            self._described,
            self._classes,
            target=asked.target,
            keyed=np.full(len(images), asked.keyed, np.bool_),
            public=public,
            dtype=asked.map_dtype,
        )

    def blank(self) -> NDArray[Any]:
        """Returns zeros of the type and shape of maps `(height, width)`."""
        shape = self._shape
        if shape is None:
            # It is the explainer's own. As long as nothing was explained, a decoy tells it.
            grey = np.zeros((1, *self._model.manifest.preprocessing.shape), np.float32)
            shape = self._explain(grey, keyed=False).maps.shape[1:]
        return np.zeros(shape, self._asked.map_dtype)

    def read(self, written: Written) -> Iterator[tuple[Predicted, Explained | None]]:
        """Yields of each image what was answered."""
        kind = np.dtype(self._asked.map_dtype).newbyteorder("<")
        for result, elements, logits in zip(written.results, written.maps, written.logits, strict=True):
            seen, target, scaling = result.prediction, result.target, result.scaling
            explained = None
            if elements is not None:
                explained = Explained(
                    saliency=np.frombuffer(elements, kind).reshape(tuple(result.map.shape)),
                    scaling=(scaling.scale, scaling.offset) if result.HasField("scaling") else None,
                    label=target.label,
                    index=target.index,
                    probability=target.probability,
                    keyed=result.keyed,
                )
            yield Predicted(seen.label, seen.index, seen.probability, logits), explained

    def _answer_some(self, images: NDArray[np.float32], condition: Condition, again: Iterator[bool] | None) -> Written:
        asked = self._asked
        public = self._model.predict(images)
        check_finite(public)
        answer = pb.ExplainResponse()
        encode_predictions(answer, public, self._described, self._classes, keyed=np.zeros(len(public), np.bool_))
        # Where fewer were charged than there are, images were changed since, and the charge is refused.
        before = None if again is None else [next(again, False) for _ in images]
        rows = choose(answer.results, condition, before=before)
        written = Written(answer.results, [None] * len(public), list(public))
        if rows:
            encode_maps(
                written,
                rows,
                self._explain(images[rows], keyed=asked.keyed),
                softmax(public),
                self._classes,
                target=asked.target,
                keyed=np.full(len(rows), asked.keyed, np.bool_),
                dtype=asked.map_dtype,
            )
        return written

    def _explain(self, images: NDArray[np.float32], *, keyed: bool) -> Computed:
        count = len(images)
        computed = self._model.explain(
            images,
            explainer=self._entry.name,
            targets=np.full(count, self._asked.target, np.int64),
            keyed=np.full(count, keyed, np.bool_),
        )
        check_finite(computed.logits, computed.maps)
        self._shape = computed.maps.shape[1:]
        return computed
