"""`keylock.v1.ExplanationService`: true maps for a license, decoys without one.

A request, or one image of a stream, goes this way, which `_answer` enters:

1. Who calls: the license is verified, or the call ends with the reason (`_authenticate`).
2. What is to be done: explainer, class, and whether the license covers it (`_agree`).
3. Places in the queue are taken for all images, or the call ends before anything is set aside.
4. Images that take some milliseconds at most are decoded (`_take_in`), so that one way to a thread does for their
   digests as well.
5. Units are set aside for the license, under the digest of what is asked (`_charge`).
6. Images are decoded that were not yet, explained and predicted, and written as results with their digests
   (`_explain`); without a license, the query guard looks at them before they are explained, and hears of the labels
   before they are answered. With a condition, all images are predicted first, and those that meet it explained.
7. The units of what was explained are charged with an entry in the audit log, or all given back where anything failed;
   the receipt is signed.
8. An answer without a license leaves when one with a license would.

What takes a fraction of a millisecond is done in the event loop: the way to a thread and back takes as long.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import grpc
import numpy as np
from numpy.typing import NDArray

from keylock.bundle import ExplainerEntry, Manifest
from keylock.errors import InputError, LicenseError, LicenseReason
from keylock.licensing import AnswerDigests, Charge, License, check, check_size, content_digest
from keylock.licensing.answers import digests_of
from keylock.licensing.conditions import Condition
from keylock.licensing.disclosures import Disclosure
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc as pb_grpc
from keylock_server.auth.authentication import Caller
from keylock_server.guard import Admission as Counted
from keylock_server.guard.refusal import SimilarQueriesError
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.early_writing import write_early
from keylock_server.metering.meter import describe_windows
from keylock_server.metering.response_padding import CallTimes
from keylock_server.scheduling.batcher import Admission
from keylock_server.scheduling.decoding import Step, decode_small, join
from keylock_server.services.disclosures import check_entitled, request_of
from keylock_server.services.explanation_answers import (
    DEFAULT_MAX_BYTES,
    Form,
    Written,
    check_answer_size,
    choose,
    encode,
    encode_maps,
    encode_predictions,
    read_form,
    softmax,
)
from keylock_server.services.model_descriptions import describe_explainer, describe_model, describe_served
from keylock_server.services.parts import Parts
from keylock_server.services.requests import (
    SentImage,
    check_count,
    check_no_target,
    check_parameters,
    choose_target,
    decoding_steps,
    read_condition,
    wants_public_prediction,
)
from keylock_server.services.streams import ImageStream, StreamLimits
from keylock_server.transport.calls import check_request_id, describe_call, new_request_id, set_license
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import NoKeyError

__all__ = ["ExplanationService"]

T = TypeVar("T")

_Context = grpc.aio.ServicerContext[Any, Any]
# Of tensors that come, and of maps that are answered.
_QUICK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class _Terms:
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
class _Task:
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
    terms: _Terms
    form: Form
    times: CallTimes
    answer: pb.ExplainResponse
    decoded: list[NDArray[np.float32]] = field(default_factory=list)


class _About(NamedTuple):
    """What every answer of a model says of it, in messages that are made once."""

    model: pb.Model
    explainers: dict[str, pb.Explainer]


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """Answers with true maps to licensed callers and with decoys, or a refusal, to the others."""

    def __init__(self, parts: Parts) -> None:
        """Takes what it works with."""
        settings = parts.settings
        self._parts, self._models, self._meter = parts, parts.models, parts.meter
        self._max_images, self._max_answer_bytes = settings.max_images, settings.max_message_bytes
        self._answer_stamped = settings.stamped_images == "answer"
        self._refuse_unlicensed = settings.unlicensed_explanations == "refuse"
        self._open_targets = settings.open_targets
        self._described: WeakKeyDictionary[ServedModel, _About] = WeakKeyDictionary()
        self._stream_limits = StreamLimits(in_flight=settings.stream_in_flight, image_s=settings.deadline_s)

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:  # noqa: N802
        """Explains the images of one request, all of them or none."""
        form = read_form(request.answer, most=self._max_answer_bytes)
        answer = await self._answer(request, form, Caller.of(context))
        if form.compression is not None:
            context.set_compression(form.compression)
            # With an answer that is returned, grpc.aio looks at the choice here and nowhere else.
            await context.send_initial_metadata(())
        return answer

    async def ExplainStream(self, requests: AsyncIterator[pb.ExplainStreamRequest], context: _Context) -> None:  # type: ignore[override]  # noqa: N802
        """Explains many images, each by itself, and sends answers as they are ready."""
        caller = Caller.of(context)
        form = Form("float32", None, DEFAULT_MAX_BYTES)

        async def begin(options: pb.ExplainRequest) -> None:
            """Refuses at once what would be refused for every image."""
            nonlocal form
            form = read_form(options.answer, most=self._max_answer_bytes)
            if form.compression is not None:
                context.set_compression(form.compression)
            granted = await self._authenticate(caller)
            with self._models.use(options.model_name, options.model_version) as model:
                terms = self._agree(model, options, granted, images=1)
            describe_call(model=model.manifest.name, explainer=terms.explainer.name, keyed=terms.keyed, images=0)

        async def explain(request: pb.ExplainRequest) -> pb.ExplainResponse:
            # A map that is too large for one message is sent in parts.
            return await self._answer(request, replace(form, max_bytes=self._max_answer_bytes), caller)

        stream = ImageStream(
            self._stream_limits, begin=begin, explain=explain, send=context.write, leaving=self._parts.running.leaving
        )
        await stream.run(requests, part_bytes=lambda: form.max_bytes // 2)

    async def Disclose(self, request: pb.DiscloseRequest, context: _Context) -> pb.DiscloseResponse:  # noqa: N802
        """Explains one image that somebody has a right to have explained, truly or not at all."""
        caller = Caller.of(context)
        identity = await asyncio.to_thread(self._parts.authenticator.require, caller, disclosing=True)
        set_license(identity.license.id)
        check_entitled(identity.license)
        disclosure = Disclosure.of(request)
        asked = request_of(request)
        form = Form("float32", None, self._max_answer_bytes)
        try:
            answer = await self._answer(asked, form, caller, disclosure=disclosure, granted=identity.license)
        except InputError as error:
            # Of a disclosure there is but one image.
            if error.field is not None and error.field.startswith("images"):
                error.field = "image"
            raise
        return pb.DiscloseResponse(answer=answer)

    async def _authenticate(self, caller: Caller) -> License | None:
        authenticator = self._parts.authenticator
        try:
            identity = authenticator.authenticate_at_once(caller)
        except BlockingIOError:
            identity = await asyncio.to_thread(authenticator.authenticate, caller)
        if identity is None:
            return None
        set_license(identity.license.id)
        return identity.license

    async def _answer(
        self,
        request: pb.ExplainRequest,
        form: Form,
        caller: Caller,
        *,
        disclosure: Disclosure | None = None,
        granted: License | None = None,
    ) -> pb.ExplainResponse:
        times = CallTimes()
        if granted is None:
            granted = await self._authenticate(caller)
        with at_field("request_id"):
            request_id = _request_id(request.request_id)
        with self._models.use(request.model_name, request.model_version) as model:
            terms = self._agree(model, request, granted, images=len(request.images))
            terms = replace(terms, disclosure=disclosure)
            describe_call(
                model=model.manifest.name,
                explainer=terms.explainer.name,
                keyed=terms.keyed,
                images=len(request.images),
            )
            answer = pb.ExplainResponse(request_id=request_id, model=self._about(model).model)
            # Before anything is set aside: a server that is full does not keep the store busy.
            with self._parts.batchers.of(model).admit(len(request.images)) as admitted:
                sent = [SentImage.of(image) for image in request.images]
                task = _Task(model, admitted, sent, terms, form, times, answer)
                charge = await self._take_in(task)
                if charge is None:
                    await self._explain(task)
                else:
                    await self._charge(task, charge)
        if disclosure is None:
            # A disclosure is another message, which has this one in it.
            write_early(answer, times)
        await self._parts.padding.leave(times, licensed=granted is not None)
        return answer

    async def _take_in(self, task: "_Task") -> Charge | None:
        """Decodes what is small, and writes down what is asked for, as it will be charged, where it will."""

        def take_in() -> Charge | None:
            charge = None if task.terms.granted is None else self._asked(task, license=task.terms.granted)
            with task.times.working():
                task.decoded = decode_small(self._steps(task))
            return charge

        return await self._nearby(take_in, quick=_are_quick(task.sent))

    async def _charge(self, task: "_Task", charge: Charge) -> None:
        """Does the work for a license, and writes results, price and receipt into the answer."""
        granted = task.terms.granted
        assert granted is not None  # noqa: S101 - only what is charged comes here
        metered = await self._meter.charge(granted, request=charge, work=lambda rows: self._explain(task, rows))
        task.answer.usage.CopyFrom(metered.usage)
        if self._parts.receipts is not None and metered.entry is not None and metered.note is not None:
            task.answer.receipt = self._parts.receipts.issue(metered.entry, metered.note)

    async def _nearby(self, job: Callable[[], T], *, quick: bool) -> T:
        """Does what is quick in the event loop, and everything else in a thread."""
        return job() if quick else await self._parts.pool.run(lambda _: job())

    async def EstimateExplain(  # noqa: N802
        self, request: pb.EstimateExplainRequest, context: _Context
    ) -> pb.EstimateExplainResponse:
        """Says what a request would cost; sets nothing aside."""
        identity = await asyncio.to_thread(self._parts.authenticator.authenticate, Caller.of(context))
        with self._models.use(request.model_name, request.model_version) as model:
            manifest = model.manifest
            with at_field("explainer"):
                explainer = model.explainer(request.explainer)
        check_count(request.images, limit=self._max_images, field="images")
        each = self._meter.units_per_image(explainer.name)
        units = each * request.images
        answer = pb.EstimateExplainResponse(explainer=explainer.name, units=units, units_per_image=each, fits=True)
        if identity is not None:
            _authorise(identity.license, manifest, explainer)
            check_size(identity.license, images=request.images)
            windows = await self._meter.windows(identity.license)
            answer.quotas.extend(describe_windows(windows))
            answer.fits = identity.license.quota.overage or all(
                window.remaining is None or window.remaining >= units for window in windows
            )
        return answer

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:  # noqa: N802
        """Describes a served model."""
        with self._models.use(request.model_name, request.model_version) as model:
            answer, limits = describe_served(model), self._parts.limits_for(model)
        answer.signs_receipts = self._parts.receipts is not None and self._meter.records
        answer.limits.CopyFrom(
            pb.RequestLimits(
                max_images=self._max_images,
                max_image_bytes=limits.max_bytes,
                max_image_pixels=limits.max_pixels,
                max_message_bytes=self._max_answer_bytes,
            )
        )
        return answer

    def _agree(
        self, model: ServedModel, request: pb.ExplainRequest, granted: License | None, *, images: int
    ) -> "_Terms":
        """Finds out what is to be done for a request, from all of it but its images."""
        with at_field("explainer"):
            explainer = model.explainer(request.explainer)
        check_parameters(request.parameters, explainer.parameters, explainer=explainer.name)
        check_count(images, limit=self._max_images, field="images")
        target = choose_target(request, model.manifest.classes)
        condition = read_condition(request, model.manifest.classes)
        public = wants_public_prediction(request, licensed=granted is not None)
        keyed = self._decide(model, granted, explainer, images=images)
        if granted is None and not self._open_targets:
            check_no_target(request)
        return _Terms(explainer, target, granted, keyed, public, condition)

    def _decide(self, model: ServedModel, granted: License | None, explainer: ExplainerEntry, *, images: int) -> bool:
        """Decides whether the key is added: for a good license that covers the explainer, and never otherwise."""
        if granted is None:
            if self._refuse_unlicensed:
                raise LicenseError(
                    LicenseReason.MISSING, "explanations need a license here: send one as 'authorization: Bearer ...'"
                )
            return False
        _authorise(granted, model.manifest, explainer)
        check_size(granted, images=images)
        if not model.holds_key:
            raise NoKeyError
        return True

    def _asked(self, task: "_Task", *, license: License) -> Charge:
        """Writes down what is asked for, as it will be charged."""
        terms, manifest = task.terms, task.model.manifest
        asked = Charge(
            license_id=license.id,
            request_id=task.answer.request_id,
            request_digest="",
            model_digest=manifest.model_digest,
            model_name=manifest.name,
            explainer=terms.explainer.name,
            parameters=terms.explainer.parameters,
            target=terms.target,
            units=0 if terms.disclosure else len(task.sent) * self._meter.units_per_image(terms.explainer.name),
            keyed=True,
            time=self._meter.now(),
            image_digests=tuple(image.digest() for image in task.sent),
            explain_if=terms.condition,
            disclosure=terms.disclosure,
        )
        return replace(asked, request_digest=content_digest(asked, map_dtype=task.form.dtype))

    def _steps(self, task: "_Task") -> list[Step]:
        granted = task.terms.granted
        return decoding_steps(
            task.sent,
            preprocessing=task.model.manifest.preprocessing,
            limits=self._parts.limits_for(task.model),
            check_pixels=None if granted is None else lambda pixels: check_size(granted, pixels=pixels),
        )

    async def _explain(self, task: "_Task", rows: Sequence[bool] | None = None) -> AnswerDigests:
        """Writes results into the answer, and returns their digests where they are charged.

        Args:
            task: The request.
            rows: Which images were explained when the request was charged, where it has a condition.
        """
        with task.times.working():
            return await self._explain_timed(task, rows)

    async def _explain_timed(self, task: "_Task", rows: Sequence[bool] | None) -> AnswerDigests:
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
        task: "_Task",
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
        self, task: "_Task", images: NDArray[np.float32], public: NDArray[np.float32], rows: Sequence[int]
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
    def _finish(task: "_Task", written: Written) -> AnswerDigests:
        """Checks an answer that is written, and returns its digests where it is charged."""
        check_answer_size(written, max_bytes=task.form.max_bytes)
        if task.terms.granted is None:
            return AnswerDigests()
        with task.times.charging():
            return digests_of(*written)

    def _about(self, model: ServedModel) -> "_About":
        """Returns what every answer of a model says of it."""
        about = self._described.get(model)
        if about is None:
            explainers = {name: describe_explainer(entry) for name, entry in model.explainers.items()}
            about = self._described[model] = _About(describe_model(model), explainers)
        return about


def _are_quick(images: Sequence[SentImage]) -> bool:
    """Tells whether images are digested and decoded in a fraction of a millisecond: files take longer than tensors."""
    return not any(image.is_file for image in images) and sum(len(image.data) for image in images) <= _QUICK_BYTES


def _authorise(granted: License, manifest: Manifest, explainer: ExplainerEntry) -> None:
    check(granted, model_name=manifest.name, model_digest=manifest.model_digest, explainer=explainer.name)


def _request_id(text: str) -> str:
    if not text:
        # Never the one in the metadata: what is charged under an id is not charged again.
        return new_request_id()
    check_request_id(text)
    return text
