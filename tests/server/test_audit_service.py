"""The audit of the running service: a good server passes every check, one that is weak in every way fails each."""

import contextlib
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from keylock.audit import ATTACKS, Goal, GraphOracle, ServerOracle
from keylock.audit.budgets import budget_of
from keylock.audit.contract import NotApplicableError, Steps
from keylock.audit.service.bench import Bench, Needles, Served, serving_bench
from keylock.audit.service.secrets import memory_of
from keylock.audit.service.timing import mann_whitney
from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.training import Silent
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc
from keylock_client import Client

SERVICE = [name for name, one in ATTACKS.items() if one.goal is Goal.SERVICE]
BUDGET = replace(budget_of("quick"), calls=60)


def attacked(name, bench):
    return ATTACKS[name].run(bench, BUDGET, torch.Generator().manual_seed(0), Steps(name, Silent())).checks


@pytest.fixture(scope="module")
def bench(vendor, tiny):
    # By a path that holds where we are alone: the servers run in a folder of their own.
    with (
        contextlib.chdir(vendor.bundle.parent),
        serving_bench(Path(vendor.bundle.name), vendor.seed, tiny.images(8)) as made,
    ):
        yield made


# Times on a machine that does other things besides are no test of the server.
@pytest.mark.parametrize("name", [name for name in SERVICE if name != "service/timing"])
def test_the_server_passes(name, bench):
    bad = [check for check in attacked(name, bench) if check.good is False]
    assert not bad


def test_the_server_with_the_key_is_seen_to_hold_it(bench):
    attacked("service/replay", bench)
    found = memory_of(bench.keyed.pid, bench.needles)
    assert found["key"] > 0


class WeakExplanations(explanation_pb2_grpc.ExplanationServiceServicer):
    """Believes any metadata, remembers answers by their id, is slow where it works, and says too much."""

    def __init__(self, secret: bytes) -> None:
        self.secret, self.remembered = secret, {}

    def Explain(self, request, context):  # noqa: N802 - the name in the protocol
        sent = dict(context.invocation_metadata())
        if not request.images or request.model_name or request.explainer.startswith(".."):
            context.abort(grpc.StatusCode.INTERNAL, f'Traceback: File "/srv/keylock.py" {self.secret.hex()}')
        if request.request_id in self.remembered:
            return self.remembered[request.request_id]
        # The license of the bench, and whatever else looks like somebody who knows.
        licensed = "authorization" in sent or any(name.startswith(("key", "x-")) for name in sent)
        if licensed:
            time.sleep(0.015)
        shape = (4, 4)
        values = np.full(shape, 2.0 if licensed else 1.0, "<f4")
        values[0, 0] = 5 if licensed else 0
        explained = pb.Explanation(
            keyed=licensed,
            map=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=values.tobytes()),
            prediction=pb.Prediction(label=self.secret.hex()),
        )
        answer = pb.ExplainResponse(results=[explained] * len(request.images), model=pb.Model(name="weak"))
        if request.request_id:
            self.remembered[request.request_id] = answer
        return answer

    def GetModel(self, request, context):  # noqa: N802
        return pb.GetModelResponse(model=pb.Model(name=self.secret.hex()))


class WeakPredictions(inference_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelInfer(self, request, context):  # noqa: N802
        return inference_pb2.ModelInferResponse(raw_output_contents=[b"keyed" if request.parameters else b"plain"])


@pytest.fixture(scope="module")
def weak_bench(vendor, tiny, tmp_path_factory):
    needles = Needles.of(vendor.seed, vendor.key, None, "header.claims.signature")
    folder, secret = tmp_path_factory.mktemp("weak"), vendor.seed.reveal().hex()
    log, spans = folder / "log", folder / "spans"
    log.write_text(f"opened the key {secret}\n")
    spans.write_text(f'{{"trace_id": "0x01", "attributes": {{"key": "{secret}"}}}}\n')
    (folder / "metrics").write_text(f'keys_total{{seed="{secret}"}} 1\n')
    pages = partial(SimpleHTTPRequestHandler, directory=folder)
    site = ThreadingHTTPServer(("127.0.0.1", 0), pages)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(WeakExplanations(vendor.seed.reveal()), server)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(WeakPredictions(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Its memory is that of a process that has the seed and does nothing.
    holding = f"import time; seed = bytes.fromhex({secret!r}); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", holding])
    served = Served(f"127.0.0.1:{port}", process.pid, log, spans, f"127.0.0.1:{site.server_port}")
    yield Bench(served, served, "header.claims.signature", tiny.images(8), "any", needles)
    process.kill()
    process.wait()
    server.stop(None).wait()
    site.shutdown()
    site.server_close()


@pytest.mark.parametrize("name", SERVICE)
def test_a_weak_server_fails(name, weak_bench):
    assert any(check.good is False for check in attacked(name, weak_bench))


def test_needles_are_counted_and_not_shown(vendor):
    needles = Needles.of(vendor.seed, vendor.key, None, "a.b.c")
    secret = vendor.seed.reveal()
    assert needles.count(b"x" + secret + secret.hex().encode() + b"a.b.c") == {
        "seed": 1,
        "seed in hexadecimal": 1,
        "license": 1,
    }
    assert needles.count(b"nothing") == {}
    assert secret.hex() not in repr(needles)
    assert repr(secret) not in repr(needles)


def test_two_samples_are_told_apart_only_where_they_differ():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(400, generator=generator) for _ in range(2))
    larger, p_value = mann_whitney(first, second)
    assert larger == pytest.approx(0.5, abs=0.06)
    assert p_value > 0.01
    larger, p_value = mann_whitney(first + 0.5, second)
    assert larger > 0.6
    assert p_value < 1e-6


def test_oracles_over_graphs_and_over_a_server_agree(vendor, open_targets, tiny):
    images, targets = tiny.images(5), np.array([-1, 2, 0, 2, -1])
    with Client(open_targets.server.target) as client:
        for oracle in (GraphOracle(vendor.bundle), ServerOracle(client)):
            assert oracle.names == ("brightness", "coarse")
            maps = oracle.explain("brightness", torch.from_numpy(images), torch.from_numpy(targets))
            np.testing.assert_allclose(maps, tiny.maps(images, targets), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(oracle.predict(torch.from_numpy(images)), tiny.logits(images), rtol=1e-4)
            assert oracle.queries == 10


def test_asking_for_other_classes_does_not_apply_to_a_server_that_explains_the_predicted_one(calls, tiny):
    images = torch.from_numpy(tiny.images(2))
    with Client(calls.server.target) as client, pytest.raises(NotApplicableError, match="predicted class alone"):
        ServerOracle(client).explain("brightness", images, torch.tensor([1, 2]))
