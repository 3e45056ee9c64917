"""A server whose disk is full charges nothing, says so, and goes on when there is room again."""

import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "licensing"))

import world

from keylock.licensing import Quota
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process need Linux")
def test_full_disk_ends_charging_and_loses_nothing(tmp_path):
    """No file of the server can grow for a while, which is what it sees of a disk that is full."""
    import resource

    made = world.World.make(tmp_path, f"sqlite:///{tmp_path / 'licenses.db'}")
    server = world.Server(made, "full", settings={"store_check_s": 0.1})
    _, token = made.grant(quota=Quota(total=2))
    metadata = [("authorization", f"Bearer {token}")]

    def limit(most):
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    with grpc.insecure_channel(server.target) as channel:
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)

        def ask(request_id, **options):
            return stub.Explain(
                pb.ExplainRequest(images=[world.image(1)], request_id=request_id), timeout=20, **options
            )

        def wait_until(serving, service):
            until = time.monotonic() + 30
            while health.Check(health_pb2.HealthCheckRequest(service=service)).status != 2 - serving:
                assert time.monotonic() < until
                time.sleep(0.02)

        assert ask("before", metadata=metadata).usage.remaining == 1
        limit(0)
        with pytest.raises(grpc.RpcError) as caught:
            ask("meanwhile", metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        wait_until(serving=False, service="keylock.v1.ExplanationService")
        wait_until(serving=True, service="")
        assert not ask("decoy").results[0].keyed
        limit(resource.RLIM_INFINITY)
        wait_until(serving=True, service="keylock.v1.ExplanationService")
        assert ask("before", metadata=metadata).usage.replayed
        assert ask("meanwhile", metadata=metadata).usage.remaining == 0
    server.stop()
    books = made.books()
    made.store.close()
    assert books.charged == {"before": 1, "meanwhile": 1}
    assert (books.reconciliation.differences, books.reconciliation.reserved, books.unlogged) == ((), 0, 0)
