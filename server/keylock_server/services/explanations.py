"""`keylock.v1.ExplanationService`: true maps for a license, decoys without one.

A request, or one image of a stream, goes this way, which `_answer` enters:

1. Who calls: the license is verified, or the call ends with the reason (`_authenticate`).
2. What is to be done: explainer, class, and whether the license covers it (`_agree`).
3. Places in the queue are taken for all images, or the call ends before anything is set aside.
4. Images that take some milliseconds at most are decoded (`Explaining.take_in`), so that one way to a thread does for
   their digests as well.
5. Units are set aside for the license, under the digest of what is asked (`_charge`).
6. Images are decoded that were not yet, explained and predicted, and written as results with their digests
   (`Explaining.explain`).
7. The units of what was explained are charged with an entry in the audit log, or all given back where anything failed;
   the receipt is signed.
8. An answer without a license leaves when one with a license would.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from keylock.bundle import ExplainerEntry, Manifest
from keylock.errors import InputError, LicenseError, LicenseReason
from keylock.licensing import Charge, License, check, check_size, content_digest
from keylock.licensing.disclosures import Disclosure
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc as pb_grpc
from keylock_server.auth.authentication import Caller
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.early_writing import write_early
from keylock_server.metering.meter import describe_windows
from keylock_server.metering.response_padding import CallTimes
from keylock_server.services.disclosures import check_entitled, request_of
from keylock_server.services.explaining import Explaining, Task, Terms
from keylock_server.services.explanation_answers import DEFAULT_MAX_BYTES, Form, read_form
from keylock_server.services.model_descriptions import describe_served
from keylock_server.services.parts import Parts
from keylock_server.services.requests import (
    SentImage,
    check_count,
    check_no_target,
    check_parameters,
    choose_target,
    read_condition,
    wants_public_prediction,
)
from keylock_server.services.streams import ImageStream, StreamLimits
from keylock_server.transport.calls import check_request_id, describe_call, new_request_id, set_license
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import NoKeyError

__all__ = ["ExplanationService"]

_Context = grpc.aio.ServicerContext[Any, Any]


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """Answers with true maps to licensed callers and with decoys, or a refusal, to the others."""

    def __init__(self, parts: Parts) -> None:
        """Takes what it works with."""
        settings = parts.settings
        self._parts, self._models, self._meter = parts, parts.models, parts.meter
        self._max_images, self._max_answer_bytes = settings.max_images, settings.max_message_bytes
        self._refuse_unlicensed = settings.unlicensed_explanations == "refuse"
        self._open_targets = settings.open_targets
        self._explaining = Explaining(parts)
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
            answer = pb.ExplainResponse(request_id=request_id, model=self._explaining.describe(model))
            # Before anything is set aside: a server that is full does not keep the store busy.
            with self._parts.batchers.of(model).admit(len(request.images)) as admitted:
                sent = [SentImage.of(image) for image in request.images]
                task = Task(model, admitted, sent, terms, form, times, answer)
                charge = await self._explaining.take_in(task, lambda: self._asked(task))
                if charge is None:
                    await self._explaining.explain(task)
                else:
                    await self._charge(task, charge)
        if disclosure is None:
            # A disclosure is another message, which has this one in it.
            write_early(answer, times)
        await self._parts.padding.leave(times, licensed=granted is not None)
        return answer

    async def _charge(self, task: Task, charge: Charge) -> None:
        """Does the work for a license, and writes results, price and receipt into the answer."""
        granted = task.terms.granted
        assert granted is not None  # noqa: S101 - only what is charged comes here
        metered = await self._meter.charge(
            granted, request=charge, work=lambda rows: self._explaining.explain(task, rows)
        )
        task.answer.usage.CopyFrom(metered.usage)
        if self._parts.receipts is not None and metered.entry is not None and metered.note is not None:
            task.answer.receipt = self._parts.receipts.issue(metered.entry, metered.note)

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

    def _agree(self, model: ServedModel, request: pb.ExplainRequest, granted: License | None, *, images: int) -> Terms:
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
        return Terms(explainer, target, granted, keyed, public, condition)

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

    def _asked(self, task: Task) -> Charge | None:
        """Writes down what is asked for, as it will be charged; None where it will not."""
        terms, manifest = task.terms, task.model.manifest
        if terms.granted is None:
            return None
        asked = Charge(
            license_id=terms.granted.id,
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


def _authorise(granted: License, manifest: Manifest, explainer: ExplainerEntry) -> None:
    check(granted, model_name=manifest.name, model_digest=manifest.model_digest, explainer=explainer.name)


def _request_id(text: str) -> str:
    if not text:
        # Never the one in the metadata: what is charged under an id is not charged again.
        return new_request_id()
    check_request_id(text)
    return text
