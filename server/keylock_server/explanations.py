"""`keylock.v1.ExplanationService`: decode, authenticate, explain, charge, encode."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from keylock.bundle import ExplainerEntry, Manifest
from keylock.digests import digest_of_array
from keylock.errors import LicenseError, LicenseReason
from keylock.images import ImageLimits
from keylock.licensing import Charge, License, ReceiptIssuer, check, check_size
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc as pb_grpc
from keylock_server.authentication import Authenticator, Caller
from keylock_server.batcher import Admission, Batchers
from keylock_server.calls import check_request_id, describe_call, new_request_id, set_license
from keylock_server.metering import Meter, content_digest, describe_windows
from keylock_server.models import Models
from keylock_server.requests import (
    at_field,
    check_count,
    check_parameters,
    choose_target,
    digest_of_image,
    prepare_images,
)
from keylock_server.runtime import Explained, ServedModel
from keylock_server.statuses import NoKeyError
from keylock_server.workers import Workers

__all__ = ["ExplanationService", "describe_model", "softmax"]

_TOP: Final = 5

_Context = grpc.aio.ServicerContext[Any, Any]


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """Answers with true maps to licensed callers and with decoys, or a refusal, to the others."""

    def __init__(
        self,
        models: Models,
        *,
        authenticator: Authenticator,
        batchers: Batchers,
        workers: Workers,
        meter: Meter,
        limits: ImageLimits,
        max_images: int,
        refuse_unlicensed: bool,
        receipts: ReceiptIssuer | None = None,
    ) -> None:
        """Makes the service.

        Args:
            models: What is served.
            authenticator: Verifies licenses.
            batchers: Run the models.
            workers: Where images are decoded.
            meter: Charges licenses.
            limits: What one image may cost.
            max_images: Most images in one request.
            refuse_unlicensed: Whether callers without a license are refused instead of given decoys.
            receipts: Signs receipts for charges; None where there are none.
        """
        self._meter = meter
        self._receipts = receipts
        self._models = models
        self._authenticator = authenticator
        self._batchers = batchers
        self._workers = workers
        self._limits = limits
        self._max_images = max_images
        self._refuse_unlicensed = refuse_unlicensed

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:  # noqa: N802
        """Explains the images of one request, all of them or none."""
        return await self._answer(request, Caller.of(context))

    async def _answer(self, request: pb.ExplainRequest, caller: Caller) -> pb.ExplainResponse:
        identity = await asyncio.to_thread(self._authenticator.authenticate, caller)
        if identity is not None:
            set_license(identity.license.id)
        with at_field("request_id"):
            request_id = _request_id(request.request_id)
        with self._models.use(request.model_name, request.model_version) as model:
            with at_field("explainer"):
                explainer = model.explainer(request.explainer)
            check_parameters(request.parameters, explainer.parameters, explainer=explainer.name)
            check_count(len(request.images), limit=self._max_images, field="images")
            target = choose_target(request, model.manifest.classes)
            granted = None if identity is None else identity.license
            keyed = self._decide(model, granted, explainer, images=len(request.images))
            manifest = model.manifest
            describe_call(model=manifest.name, explainer=explainer.name, keyed=keyed, images=len(request.images))
            answer = pb.ExplainResponse(request_id=request_id, model=describe_model(model))
            # Before anything is set aside: a server that is full does not keep the store busy.
            with self._batchers.of(model).admit(len(request.images)) as admitted:

                def work() -> Awaitable[tuple[list[pb.Explanation], Sequence[str]]]:
                    return self._explain(
                        model, admitted, request, explainer, target=target, keyed=keyed, granted=granted
                    )

                if granted is None:
                    results, _ = await work()
                    answer.results.extend(results)
                    return answer
                asked = await asyncio.to_thread(
                    self._asked, manifest, request, request_id, explainer, target=target, license=granted
                )
                metered = await self._meter.charge(granted, request=asked, work=work)
            answer.results.extend(metered.answer)
            answer.usage.CopyFrom(metered.usage)
            if self._receipts is not None and metered.proven:
                answer.receipt = self._receipts.issue(metered.charge)
            return answer

    async def EstimateExplain(  # noqa: N802
        self, request: pb.EstimateExplainRequest, context: _Context
    ) -> pb.EstimateExplainResponse:
        """Says what a request would cost; sets nothing aside."""
        identity = await asyncio.to_thread(self._authenticator.authenticate, Caller.of(context))
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
            return _describe_everything(model)

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

    def _asked(
        self,
        manifest: Manifest,
        request: pb.ExplainRequest,
        request_id: str,
        explainer: ExplainerEntry,
        *,
        target: int,
        license: License,
    ) -> Charge:
        """Writes down what is asked for, as it will be charged."""
        asked = Charge(
            license_id=license.id,
            request_id=request_id,
            request_digest="",
            model_digest=manifest.model_digest,
            explainer=explainer.name,
            parameters=explainer.parameters,
            target=target,
            units=len(request.images) * self._meter.units_per_image(explainer.name),
            keyed=True,
            time=self._meter.now(),
            image_digests=tuple(digest_of_image(image) for image in request.images),
            map_digests=(),
        )
        return replace(asked, request_digest=content_digest(asked))

    async def _explain(
        self,
        model: ServedModel,
        admitted: Admission,
        request: pb.ExplainRequest,
        explainer: ExplainerEntry,
        *,
        target: int,
        keyed: bool,
        granted: License | None,
    ) -> tuple[list[pb.Explanation], Sequence[str]]:
        images = await self._workers.run(
            lambda abandoned: prepare_images(
                request.images,
                preprocessing=model.manifest.preprocessing,
                limits=self._limits,
                abandoned=abandoned,
                check_pixels=None if granted is None else lambda pixels: check_size(granted, pixels=pixels),
            )
        )
        explained = await admitted.explain(
            images,
            explainer=explainer.name,
            targets=np.full(len(images), target, np.int64),
            keyed=np.full(len(images), keyed, np.bool_),
        )

        def encode() -> tuple[list[pb.Explanation], Sequence[str]]:
            results = _encode(explained, explainer, model.manifest.classes, target=target, keyed=keyed)
            digests = [] if granted is None else [digest_of_array("float32", r.map.shape, r.map.data) for r in results]
            return results, digests

        # Not by the workers, where it would wait behind images of others that have yet to be decoded.
        return await asyncio.to_thread(encode)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turns logits `(batch, classes)` into probabilities of the same shape, without overflow."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def describe_model(model: ServedModel) -> pb.Model:
    """Writes which model it is into a message."""
    return pb.Model(name=model.manifest.name, digest=model.manifest.model_digest, version=model.version)


def _authorise(granted: License, manifest: Manifest, explainer: ExplainerEntry) -> None:
    check(granted, model_name=manifest.name, model_digest=manifest.model_digest, explainer=explainer.name)


def _describe_everything(model: ServedModel) -> pb.GetModelResponse:
    preprocessing = model.manifest.preprocessing
    height, width = preprocessing.size
    return pb.GetModelResponse(
        model=describe_model(model),
        classes=model.manifest.classes,
        preprocessing=pb.Preprocessing(
            height=height,
            width=width,
            channels=preprocessing.channels,
            resize=preprocessing.resize,
            mean=preprocessing.mean,
            std=preprocessing.std,
        ),
        explainers=[_describe(entry) for entry in model.explainers.values()],
        key_available=model.holds_key,
    )


def _request_id(text: str) -> str:
    if not text:
        # Never the one in the metadata: what is charged under an id is not charged again.
        return new_request_id()
    check_request_id(text)
    return text


def _encode(
    explained: Explained, explainer: ExplainerEntry, classes: tuple[str, ...], *, target: int, keyed: bool
) -> list[pb.Explanation]:
    results = []
    described = _describe(explainer)
    for logits, probabilities, saliency in zip(
        explained.logits, softmax(explained.logits), explained.maps, strict=True
    ):
        # A stable order: of equally probable classes the first comes first, as argmax has it.
        best = np.argsort(-logits, kind="stable")[:_TOP]
        scores = [_score(int(index), probabilities, classes) for index in best]
        prediction = pb.Prediction(
            index=scores[0].index,
            label=scores[0].label,
            probability=scores[0].probability,
            logits=logits.tolist(),
            top=scores,
        )
        data = np.ascontiguousarray(saliency, dtype="<f4").tobytes()
        results.append(
            pb.Explanation(
                prediction=prediction,
                map=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=saliency.shape, data=data),
                explainer=described,
                keyed=keyed,
                target=scores[0] if target < 0 else _score(target, probabilities, classes),
            )
        )
    return results


def _score(index: int, probabilities: NDArray[np.float32], classes: tuple[str, ...]) -> pb.ClassScore:
    return pb.ClassScore(index=index, label=classes[index], probability=float(probabilities[index]))


def _describe(entry: ExplainerEntry) -> pb.Explainer:
    described = pb.Explainer(name=entry.name)
    json_format.ParseDict(entry.parameters, described.parameters)
    return described
