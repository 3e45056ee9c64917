"""The work on a request for explanations, once it is known for whom it is done and how: decoded, explained, written.

Nothing here decides what a caller may have: `Terms` say it, units are set aside before, and charged afterwards. With a
condition, all images are predicted first, and those that meet it explained. Without a license, the query guard looks at
the images before they are explained, and hears of the labels before they are answered.

What takes a fraction of a millisecond is done in the event loop: the way to a thread and back takes as long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import ExplainerEntry
from keylock.licensing import AnswerDigests, License, check_size
from keylock.licensing.answers import digests_of
from keylock.licensing.conditions import Condition
from keylock.licensing.disclosures import Disclosure
from keylock.v1 import explanation_pb2 as pb
from keylock_server.guard import Admission as Counted
from keylock_server.guard.refusal import SimilarQueriesError
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.response_padding import CallTimes
from keylock_server.scheduling.batcher import Admission
from keylock_server.scheduling.decoding import Step, decode_small, join
from keylock_server.services.explanation_answers import (
    Form,
    Written,
    check_answer_size,
    choose,
    encode,
    encode_maps,
    encode_predictions,
    softmax,
)
from keylock_server.services.model_descriptions import describe_explainer, describe_model
from keylock_server.services.parts import Parts
from keylock_server.services.requests import SentImage, decoding_steps

__all__ = ["Explaining", "Task", "Terms"]

T = TypeVar("T")

# Of tensors that come, and of maps that are answered.
_QUICK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Terms:
    """What is to be done for a request.

    Attributes:
        explainer: By what.
        target: For which class; -1 for the predicted one.
        granted: For whom.
        keyed: Whether with the key.
        public: Whether the prediction beside the map is the one that everybody gets.
        condition: Which images are explained; None for all.
        disclosure: Why it is one, and about whom; None where it is none.
    """

    explainer: ExplainerEntry
    target: int
    granted: License | None
    keyed: bool
    public: bool
    condition: Condition | None
    disclosure: Disclosure | None = None


@dataclass(slots=True)
class Task:
    """A request that has its places.

    Attributes:
        model: What explains it.
        admitted: Asks the model.
        sent: Its images.
        terms: What is to be done.
        form: How the answer is to travel.
        times: Of the call.
        answer: What the results are written into.
        decoded: What was decoded of the first images so far.
    """

    model: ServedModel
    admitted: Admission
    sent: Sequence[SentImage]
    terms: Terms
    form: Form
    times: CallTimes
    answer: pb.ExplainResponse
    decoded: list[NDArray[np.float32]] = field(default_factory=list)


class _About(NamedTuple):
    """What every answer of a model says of it, in messages that are made once."""

    model: pb.Model
    explainers: dict[str, pb.Explainer]


class Explaining:
    """Explains the images of tasks, by the parts of a server."""

    def __init__(self, parts: Parts) -> None:
        """Takes what it works with."""
        self._parts = parts
        self._answer_stamped = parts.settings.stamped_images == "answer"
        self._described: WeakKeyDictionary[ServedModel, _About] = WeakKeyDictionary()

    def describe(self, model: ServedModel) -> pb.Model:
        """Returns what every answer of a model calls it; one message for all of them."""
        return self._about(model).model

    async def take_in(self, task: Task, note: Callable[[], T]) -> T:
        """Decodes what is small, and makes a note of what is asked for, which takes digests of the images.

        Args:
            task: The request.
            note: Makes the note, on the same way to a thread.

        Returns:
            The note.
        """

        def take_in() -> T:
            noted = note()
            with task.times.working():
                task.decoded = decode_small(self._steps(task))
            return noted

        return await self._nearby(take_in, quick=_are_quick(task.sent))

    async def explain(self, task: Task, rows: Sequence[bool] | None = None) -> AnswerDigests:
        """Writes results into the answer, and returns their digests where they are charged.

        Args:
            task: The request.
            rows: Which images were explained when the request was charged, where it has a condition.
        """
        with task.times.working():
            return await self._explain_timed(task, rows)

    async def _explain_timed(self, task: Task, rows: Sequence[bool] | None) -> AnswerDigests:
        model, terms, times, admitted = task.model, task.terms, task.times, task.admitted
        if len(task.decoded) == len(task.sent):
            images = join(task.decoded)
        else:
            images = await self._parts.decoder.run(lambda: self._steps(task), done=task.decoded)
        counted = None
        if terms.granted is None:
            # In the time in which a license would be charged.
            with times.charging():
                counted = await self._parts.gate.admit(images, model.manifest, labels_only=False, caller=None)
        # What everybody is told of a stamped picture is told of the picture as it came.
        keyed, shown = np.full(len(images), terms.keyed, np.bool_), images
        if self._answer_stamped and not terms.keyed and model.holds_key:
            keyed, shown = await self._parts.pool.run(lambda _: model.without_trigger(images))
        if terms.condition is not None:
            return await self._explain_some(task, terms.condition, images, shown, keyed, counted, rows)
        explained = await admitted.explain(
            shown,
            explainer=terms.explainer.name,
            targets=np.full(len(images), terms.target, np.int64),
            keyed=keyed,
        )
        # Also where the map is a decoy, so that an answer takes as long with a license as without one.
        public = await admitted.predict(images) if terms.public or keyed.any() > terms.keyed else None
        with times.charging():
            self._parts.gate.hear(counted, explained.logits if public is None else public)

        def write() -> AnswerDigests:
            written = encode(
                task.answer,
                explained,
                self._about(model).explainers[terms.explainer.name],
                model.manifest.classes,
                target=terms.target,
                keyed=keyed,
                public=public,
                dtype=task.form.dtype,
            )
            return self._finish(task, written)

        return await self._nearby(write, quick=explained.maps.nbytes <= _QUICK_BYTES)

    async def _explain_some(
        self,
        task: Task,
        condition: Condition,
        images: NDArray[np.float32],
        shown: NDArray[np.float32],
        keyed: NDArray[np.bool_],
        counted: Counted | None,
        before: Sequence[bool] | None,
    ) -> AnswerDigests:
        """Predicts all images, and explains those whose prediction meets the condition.

        It goes the same way with a license and without one, and nothing that a license changes decides which images
        these are, so that neither the time nor the shape of an answer tells more than its predictions.

        Args:
            task: The request.
            condition: Which images to explain.
            images: All of them, `(batch, channels, height, width)`.
            shown: The same as they are explained.
            keyed: Which of them with the key `(batch,)`.
            counted: What the query guard is to hear of an answer without a license.
            before: Which were explained when the request was charged; None where it was not.
        """
        terms, times = task.terms, task.times
        classes = task.model.manifest.classes
        public = await task.admitted.predict(images)
        with times.charging():
            self._parts.gate.hear(counted, public)

        def predict() -> list[int]:
            explainer = self._about(task.model).explainers[terms.explainer.name]
            encode_predictions(task.answer, public, explainer, classes, keyed=np.zeros(len(public), np.bool_))
            return choose(task.answer.results, condition, before=before)

        rows = await self._nearby(predict, quick=public.nbytes <= _QUICK_BYTES)
        if terms.granted is not None:
            with times.charging():
                await self._guard_unpaid(task, images, public, rows)
        written = Written(task.answer.results, [None] * len(public), list(public))
        explained = None
        if rows:
            explained = await task.admitted.explain(
                shown[rows],
                explainer=terms.explainer.name,
                targets=np.full(len(rows), terms.target, np.int64),
                keyed=keyed[rows],
            )

        def write() -> AnswerDigests:
            if explained is not None:
                encode_maps(
                    written, rows, explained, softmax(public), classes, target=terms.target, keyed=keyed[rows],
                    dtype=task.form.dtype,
                )  # fmt: skip
            return self._finish(task, written)

        return await self._nearby(write, quick=explained is None or explained.maps.nbytes <= _QUICK_BYTES)

    async def _guard_unpaid(
        self, task: Task, images: NDArray[np.float32], public: NDArray[np.float32], rows: Sequence[int]
    ) -> None:
        """Lets the query guard look at what a license gets and does not pay: predictions of images without a map."""
        granted = task.terms.granted
        unpaid = sorted(set(range(len(images))) - set(rows))
        if not unpaid or granted is None or granted.similar_queries:
            return
        try:
            counted = await self._parts.gate.admit(images[unpaid], task.model.manifest, labels_only=False, caller=None)
        except SimilarQueriesError as error:
            raise error.at(unpaid[error.row]) from None
        self._parts.gate.hear(counted, public[unpaid])

    @staticmethod
    def _finish(task: Task, written: Written) -> AnswerDigests:
        """Checks an answer that is written, and returns its digests where it is charged."""
        check_answer_size(written, max_bytes=task.form.max_bytes)
        if task.terms.granted is None:
            return AnswerDigests()
        with task.times.charging():
            return digests_of(*written)

    def _steps(self, task: Task) -> list[Step]:
        granted = task.terms.granted
        return decoding_steps(
            task.sent,
            preprocessing=task.model.manifest.preprocessing,
            limits=self._parts.limits_for(task.model),
            check_pixels=None if granted is None else lambda pixels: check_size(granted, pixels=pixels),
        )

    async def _nearby(self, job: Callable[[], T], *, quick: bool) -> T:
        """Does what is quick in the event loop, and everything else in a thread."""
        return job() if quick else await self._parts.pool.run(lambda _: job())

    def _about(self, model: ServedModel) -> _About:
        """Returns what every answer of a model says of it."""
        about = self._described.get(model)
        if about is None:
            explainers = {name: describe_explainer(entry) for name, entry in model.explainers.items()}
            about = self._described[model] = _About(describe_model(model), explainers)
        return about


def _are_quick(images: Sequence[SentImage]) -> bool:
    """Tells whether images are digested and decoded in a fraction of a millisecond: files take longer than tensors."""
    return not any(image.is_file for image in images) and sum(len(image.data) for image in images) <= _QUICK_BYTES
