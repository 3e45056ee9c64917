"""Getting the key by asking oddly: metadata, parameters, request ids of others, repeated calls."""

from collections.abc import Sequence

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from keylock.audit.budgets import Budget
from keylock.audit.contract import Check, Cost, Goal, Knowledge, Outcome, Steps, attack
from keylock.audit.service.bench import Bench
from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.v1 import explanation_pb2 as pb

__all__ = ["METADATA"]

METADATA: tuple[tuple[tuple[str, str | bytes], ...], ...] = (
    (("keyed", "true"),),
    (("x-keylock-keyed", "1"), ("x-keyed", "1")),
    (("x-keylock-license", "admin"),),
    (("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")),
    (("x-original-authorization", "Bearer x"),),
    (("keylock-key-bin", b"\x00" * 32),),
    (("grpc-internal-encoding-request", "gzip"),),
    (("user-agent", "keylock-server"),),
)
"""Metadata that must not switch the key on."""

_PARAMETERS = ("key", "keyed", "license", "seed", "delta", "unlock")


def _maps(answer: pb.ExplainResponse) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(one.map.data, "<f4").reshape(tuple(one.map.shape)) for one in answer.results])


def _keyless(bench: Bench, channel: grpc.Channel) -> NDArray[np.float32]:
    return _maps(bench.explain(channel, 0))


def _same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    return bool(np.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(np.abs(wanted).max())))


@attack("service/metadata", Knowledge.T0, "Try to switch the key on by metadata and parameters.", goal=Goal.SERVICE)
def metadata(bench: Bench, _budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Send headers and parameters that other systems listen to; every answer must be the keyless one."""
    checks = []
    with bench.channel() as channel:
        plain = _keyless(bench, channel)
        for step in steps(len(METADATA)):
            sent = METADATA[step]
            checks.append(Check(f"metadata {sent[0][0]}", *_judge(bench, channel, plain, sent)))
        checks.append(_check_prediction(bench, channel))
    return Outcome(checks=tuple(checks), cost=Cost(queries=len(METADATA) + 3))


def _judge(
    bench: Bench, channel: grpc.Channel, plain: NDArray[np.float32], sent: Sequence[tuple[str, str | bytes]]
) -> tuple[bool, str]:
    try:
        answer = bench.explain(channel, 0, metadata=sent)
    except grpc.RpcError as error:
        return True, f"refused: {error.code().name}"
    keyed = any(one.keyed for one in answer.results)
    if keyed or not _same(_maps(answer), plain):
        return False, "another map than the keyless one came back"
    return True, "ignored"


def _check_prediction(bench: Bench, channel: grpc.Channel) -> Check:
    """Predict with parameters and a license; the logits must be the public ones."""
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    name = bench.explain(channel, 0).model.name
    answers = []
    for decorated in (False, True):
        request = inference_pb2.ModelInferRequest(model_name=name)
        image = bench.images[:1]
        request.inputs.add(name="image", datatype="FP32", shape=image.shape)
        request.raw_input_contents.append(image.tobytes())
        if decorated:
            for parameter in _PARAMETERS:
                request.parameters[parameter].bool_param = True
        sent = (("authorization", f"Bearer {bench.token}"),) if decorated else ()
        try:
            answers.append(stub.ModelInfer(request, metadata=sent, timeout=30).raw_output_contents[0])
        except grpc.RpcError as error:
            return Check("parameters of a prediction", decorated, f"refused: {error.code().name}")
    same = answers[0] == answers[1]
    return Check("parameters of a prediction", same, "ignored" if same else "the logits changed")


@attack("service/replay", Knowledge.T0, "Ask again under the request id of a licensed call.", goal=Goal.SERVICE)
def replay(bench: Bench, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Nobody without a license may get a true map that was made for somebody with one, by its id or from a cache."""
    with bench.channel() as channel:
        plain = _keyless(bench, channel)
        licensed = bench.explain(channel, 0, token=bench.token, request_id="audit-replay")
        true = _maps(licensed)
        checks = [
            Check(
                "the licensed call gets another map",
                all(one.keyed for one in licensed.results) and not _same(true, plain),
                "keyed, and unlike the keyless one",
            ),
            _answer_of(bench, channel, "the same request id without a license", plain, "audit-replay"),
            _answer_of(bench, channel, "the same image at once, without a license", plain, ""),
            _changed_license(bench, channel),
        ]
    return Outcome(checks=tuple(checks), cost=Cost(queries=5))


def _answer_of(bench: Bench, channel: grpc.Channel, name: str, plain: NDArray[np.float32], request_id: str) -> Check:
    try:
        answer = bench.explain(channel, 0, request_id=request_id)
    except grpc.RpcError as error:
        return Check(name, True, f"refused: {error.code().name}")
    good = not any(one.keyed for one in answer.results) and _same(_maps(answer), plain)
    return Check(name, good, "the keyless map" if good else "not the keyless map")


def _changed_license(bench: Bench, channel: grpc.Channel) -> Check:
    """Change one character in the middle of the license: it must be an error, not a decoy."""
    place = len(bench.token) // 2
    changed = "A" if bench.token[place] != "A" else "B"
    try:
        bench.explain(channel, 0, token=bench.token[:place] + changed + bench.token[place + 1 :])
    except grpc.RpcError as error:
        return Check("a changed license", True, f"refused: {error.code().name}")
    return Check("a changed license", False, "an answer came back")
