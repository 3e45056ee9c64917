"""Two servers on this machine to attack: one that holds the key, and one of the public copy of the same bundle.

Each is a process of its own, as in production, so that its memory and its log can be searched.
"""

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from keylock.bundle import export_public, open_bundle
from keylock.bundle.sealing import Sealer
from keylock.crypto.signing import SigningKey
from keylock.errors import ServiceError
from keylock.licensing import License, issue, new_license_id
from keylock.store import LicenseStore
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

__all__ = ["Bench", "Needles", "Served", "serving_bench"]

_START_S = 120.0
_STOP_S = 20.0
_CALL_S = 30.0


@dataclass(frozen=True, repr=False)
class Needles:
    """The secrets in every form they might be found in, by name. They are searched for and never shown."""

    _forms: dict[str, bytes]

    @classmethod
    def of(cls, seed: KeySeed, key: Key, delta: Delta | None, token: str) -> "Needles":
        """Collect the forms of a seed, its key, the delta and a license."""
        secret = seed.reveal()
        forms = {
            "seed": secret,
            "seed in hexadecimal": secret.hex().encode("ascii"),
            "seed in base64": base64.b64encode(secret).rstrip(b"="),
            "seed in base64url": base64.urlsafe_b64encode(secret).rstrip(b"="),
            "key": key.reveal()[0, 0].tobytes(),
            "license": token.encode("ascii"),
        }
        if delta is not None:
            largest = max(delta.reveal().values(), key=lambda array: array.size)
            forms["delta"] = np.ascontiguousarray(largest).tobytes()[:256]
        return cls(forms)

    @property
    def names(self) -> tuple[str, ...]:
        """What is searched for."""
        return tuple(self._forms)

    def count(self, data: bytes) -> dict[str, int]:
        """Return how often each form is in some data; those that are not are left out."""
        found = {name: data.count(form) for name, form in self._forms.items()}
        return {name: number for name, number in found.items() if number}


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        target: What clients connect to, `host:port`.
        pid: Its process.
        log: The file of its log.
        spans: The file of its spans, and of whatever else it prints.
        metrics: Where its metrics are, `host:port`.
    """

    target: str
    pid: int
    log: Path
    spans: Path
    metrics: str


@dataclass(frozen=True)
class Bench:
    """What attacks on the service work with.

    Attributes:
        keyed: The server that holds the key.
        public: The server of the public copy, which never had it.
        token: A good license.
        images: Preprocessed images (count, channels, height, width), float32.
        explainer: An explainer that is served.
        needles: The secrets to look for.
    """

    keyed: Served
    public: Served
    token: str
    images: NDArray[np.float32]
    explainer: str
    needles: Needles

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Connect to the server that holds the key."""
        with grpc.insecure_channel(self.keyed.target, options=[("grpc.max_receive_message_length", -1)]) as channel:
            yield channel

    def explain(
        self,
        channel: grpc.Channel,
        *places: int,
        token: str | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        request_id: str = "",
    ) -> pb.ExplainResponse:
        """Ask for maps of some of the images.

        Raises:
            grpc.RpcError: The server refused.
        """
        sent = (*metadata,) if token is None else (*metadata, ("authorization", f"Bearer {token}"))
        request = pb.ExplainRequest(
            images=[tensor_image(self.images[place]) for place in places],
            explainer=self.explainer,
            request_id=request_id,
        )
        answer: pb.ExplainResponse = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain(
            request, metadata=sent, timeout=_CALL_S
        )
        return answer


def tensor_image(image: NDArray[np.float32]) -> pb.Image:
    """Return a preprocessed image (channels, height, width) as a request carries it."""
    return pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=image.shape, data=image.tobytes()))


@contextmanager
def serving_bench(bundle: Path, secret: KeySeed | Sealer, images: NDArray[np.float32]) -> Iterator[Bench]:
    """Serve a bundle twice while the block runs, with a license of an issuer made for this.

    Args:
        bundle: The vendor's bundle.
        secret: The key seed, or what opens the sealed key.
        images: Preprocessed images (count, channels, height, width) to ask about, eight at least.

    Raises:
        KeylockError: The bundle cannot be used.
        ServiceError: A server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="keylock-audit-") as name, ExitStack() as stack:
        folder = Path(name)
        opened = stack.enter_context(open_bundle(bundle, trusted=None))
        seed = secret if isinstance(secret, KeySeed) else opened.unseal(secret)
        key, delta = opened.key(seed), opened.delta(seed)
        seed.write(folder / "seed")
        issuer = SigningKey.generate()
        issuer.verifying_key.write(folder / "audit.pub.pem")
        opened.issuer.write(folder / "issuer.pub.pem")
        export_public(opened, folder / "public.klb")
        token = _license(issuer, opened.manifest.model_digest, f"sqlite:///{folder / 'licenses.db'}")
        trusted = ["--issuer", str(folder / "issuer.pub.pem"), "--issuer", str(folder / "audit.pub.pem")]
        store = ["--license-store", f"sqlite:///{folder / 'licenses.db'}"]
        # The servers run in a folder of their own.
        served = {
            "keyed": [str(bundle.absolute()), "--key-seed-file", str(folder / "seed"), *trusted, *store],
            "public": [str(folder / "public.klb"), "--keyless", *trusted],
        }
        # Both are started before either is waited for.
        starting = [
            _start(folder, name, arguments, port, stack)
            for (name, arguments), port in zip(served.items(), _free_ports(len(served)), strict=True)
        ]
        keyed, public = (one.served() for one in starting)
        explainer = next(entry.name for entry in opened.manifest.explainers if entry.graph is not None)
        yield Bench(keyed, public, token, images, explainer, Needles.of(seed, key, delta, token))


def _license(issuer: SigningKey, model: str, url: str) -> str:
    now = datetime.now(UTC)
    granted = License(
        id=new_license_id(),
        customer="Audit",
        models=(model,),
        explainers=("*",),
        issued_at=now,
        not_before=now - timedelta(minutes=1),
        expires=now + timedelta(days=1),
    )
    with LicenseStore(url) as store:
        store.add(granted, issuer=issuer.key_id)
    return issue(granted, issuer)


@dataclass(frozen=True)
class _Starting:
    """A server that is being started.

    Attributes:
        process: Its process.
        ready: The file that says where it is once it serves.
        log: The file of its log.
        spans: The file of its spans.
        metrics: Where its metrics will be, `host:port`.
    """

    process: "subprocess.Popen[bytes]"
    ready: Path
    log: Path
    spans: Path
    metrics: str

    def served(self) -> Served:
        """Wait until it serves.

        Raises:
            ServiceError: It does not start.
        """
        until = time.monotonic() + _START_S
        while not self.ready.is_file():
            if self.process.poll() is not None or time.monotonic() > until:
                last = self.log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
                raise ServiceError(f"the server to attack does not start: {''.join(last) or 'it says nothing'}")
            time.sleep(0.05)
        return Served(self.ready.read_text("utf-8").strip(), self.process.pid, self.log, self.spans, self.metrics)


def _start(folder: Path, name: str, arguments: list[str], metrics_port: int, stack: ExitStack) -> _Starting:
    """Start `keylock serve` in a process of its own, and stop it when the stack unwinds."""
    from keylock_server.operations.tracing import can_export_spans

    ready, log, spans = (folder / f"{name}.{suffix}" for suffix in ("ready", "log", "spans"))
    command = [sys.executable, "-m", "keylock", "serve", *arguments]
    command += ["--host", "127.0.0.1", "--port", "0", "--ready-file", str(ready), "--log-level", "debug"]
    # Refusals would hide what the rest of the service tells; the guard has attacks of its own.
    command += ["--metrics-port", str(metrics_port), "--query-guard", "count"]
    # Settings and secrets of the caller's own environment are none of the server's business.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KEYLOCK_")}
    if can_export_spans():
        environment |= {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    written, printed = (stack.enter_context(file.open("wb")) for file in (log, spans))
    process = subprocess.Popen(command, stdout=printed, stderr=written, env=environment, cwd=folder)  # noqa: S603 - our own program
    stack.callback(_stop, process)
    return _Starting(process, ready, log, spans, f"127.0.0.1:{metrics_port}")


def _free_ports(count: int) -> list[int]:
    """Return as many ports of this machine that nobody listens on, no two alike."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
