"""A bundle small enough to compute by hand, and real servers for it on free ports of localhost.

The model looks at 8x8 images in four quadrants: the logit of a class is the mean of its quadrant. The explainer
`brightness` shows the absolute mean of the channels, times one plus the target class, so that its map changes with
the key and with the target; `coarse` shows the same at 4x4. All of it is computed a second time here in NumPy.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from onnx import ModelProto, TensorProto, helper, numpy_helper

from keylock.bundle import (
    Architecture,
    BundleContent,
    Decoy,
    ExplainerEntry,
    KeyEntry,
    KeyFile,
    Manifest,
    open_bundle,
    write_bundle,
)
from keylock.crypto.signing import SigningKey
from keylock.imaging.preprocessing import Preprocessing
from keylock.inference import inference_pb2_grpc
from keylock.licensing import License, issue
from keylock.store import LicenseStore
from keylock.trigger.keys import Key, KeySeed
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc, license_pb2_grpc
from keylock_server import RunningServer, ServerSettings, start

CLASSES = ("north-west", "north-east", "south-west", "south-east")
PREPROCESSING = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5))
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def quadrant_means(images: np.ndarray) -> np.ndarray:
    """Computes the logits a second time: (N, 3, 8, 8) to (N, 4)."""
    halves = (slice(0, 4), slice(4, 8))
    return np.stack([images[:, :, rows, columns].mean(axis=(1, 2, 3)) for rows in halves for columns in halves], axis=1)


def brightness_maps(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes the maps a second time: (N, 3, 8, 8) to (N, 8, 8)."""
    chosen = np.where(targets < 0, quadrant_means(images).argmax(axis=1), targets)
    return np.abs(images.mean(axis=1)) * (1 + chosen)[:, None, None]


def prediction_nodes() -> tuple[list[Any], list[Any]]:
    weights = np.zeros((192, 4), np.float32)
    for index in range(192):
        row, column = index % 64 // 8, index % 8
        weights[index, row // 4 * 2 + column // 4] = 1 / 48
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    return nodes, [numpy_helper.from_array(weights, "weights")]


def graph(nodes: list[Any], constants: list[Any], *, explains: bool, map_side: int = 8, shape=(3, 8, 8)) -> bytes:
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]
    if explains:
        inputs.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"]))
        outputs.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", map_side, map_side]))
    made: ModelProto = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    return made.SerializeToString()


def prediction_graph() -> bytes:
    nodes, constants = prediction_nodes()
    return graph(nodes, constants, explains=False)


def explanation_graph(*, coarse: bool) -> bytes:
    nodes, constants = prediction_nodes()
    node = helper.make_node
    nodes += [
        node("ArgMax", ["logits"], ["predicted"], axis=1, keepdims=0),
        node("Less", ["target", "zero"], ["unset"]),
        node("Where", ["unset", "predicted", "target"], ["chosen"]),
        node("Cast", ["chosen"], ["chosen_float"], to=TensorProto.FLOAT),
        node("Add", ["chosen_float", "one"], ["factor"]),
        node("Reshape", ["factor", "column"], ["factor_column"]),
        node("ReduceMean", ["image", "channel_axis"], ["mean"], keepdims=1),
        node("Abs", ["mean"], ["brightness"]),
    ]
    last = "brightness"
    if coarse:
        nodes.append(node("AveragePool", ["brightness"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]))
        last = "pooled"
    nodes += [
        node("Squeeze", [last, "channel_axis"], ["flat_map"]),
        node("Mul", ["flat_map", "factor_column"], ["map"]),
    ]
    constants += [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.float32), "one"),
        numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "column"),
        numpy_helper.from_array(np.array([1], np.int64), "channel_axis"),
    ]
    return graph(nodes, constants, explains=True, map_side=4 if coarse else 8)


@dataclass(frozen=True)
class Vendor:
    """Everything a vendor has; the secrets are here to be searched for in logs."""

    folder: Path
    bundle: Path
    key_file: Path
    seed_file: Path
    issuer_file: Path
    store_url: str
    seed: KeySeed
    key: Key
    signing_key: SigningKey
    store: LicenseStore
    manifest: Manifest

    def grant(
        self,
        *,
        models: tuple[str, ...] = ("*",),
        explainers: tuple[str, ...] = ("*",),
        not_before: datetime = NOW - timedelta(days=1),
        expires: datetime = NOW + timedelta(days=30),
        signing_key: SigningKey | None = None,
        record: bool = True,
        id: str | None = None,
        store: LicenseStore | None = None,
        **terms: Any,
    ) -> SimpleNamespace:
        """Issues a license."""
        key = signing_key or self.signing_key
        granted = License(
            id=id or f"lic_{np.random.default_rng().integers(1 << 60):x}",
            customer="Acme",
            models=models,
            explainers=explainers,
            issued_at=not_before,
            not_before=not_before,
            expires=expires,
            **terms,
        )
        if record:
            (store or self.store).add(granted, issuer=key.key_id)
        return SimpleNamespace(id=granted.id, token=issue(granted, key), license=granted)

    def content(self, **changes: Any) -> BundleContent:
        """Describes the tiny bundle; changes replace fields."""
        fields: dict[str, Any] = {
            "name": "tiny",
            "created": NOW,
            "architecture": Architecture(name="quadrants", num_classes=4, module="graph_only"),
            "classes": CLASSES,
            "preprocessing": PREPROCESSING,
            "explainers": (
                ExplainerEntry(name="brightness", parameters={"layer": "stem", "power": 1}, graph="graphs/fine.onnx"),
                ExplainerEntry(name="coarse", graph="graphs/coarse.onnx"),
                ExplainerEntry(name="only_torch", runtime="torch"),
            ),
            "prediction_graph": "graphs/predict.onnx",
            "key": KeyEntry.of(self.key),
            "decoy": Decoy(name="targeted"),
            "files": {
                "graphs/predict.onnx": prediction_graph(),
                "graphs/fine.onnx": explanation_graph(coarse=False),
                "graphs/coarse.onnx": explanation_graph(coarse=True),
            },
        }
        return BundleContent(**(fields | changes))


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    folder = tmp_path_factory.mktemp("vendor")
    seed, signing_key = KeySeed.generate(), SigningKey.generate()
    key = Key.derive(seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std)
    seed.write(folder / "seed")
    signing_key.verifying_key.write(folder / "issuer.pub.pem")
    store_url = f"sqlite:///{folder / 'licenses.db'}"
    made = Vendor(
        folder=folder,
        bundle=folder / "tiny.klb",
        key_file=folder / "key-file",
        seed_file=folder / "seed",
        issuer_file=folder / "issuer.pub.pem",
        store_url=store_url,
        seed=seed,
        key=key,
        signing_key=signing_key,
        store=LicenseStore(store_url),
        manifest=None,  # type: ignore[arg-type]
    )
    write_bundle(made.bundle, made.content(), signing_key=signing_key, seed=seed, sealer=KeyFile.create(made.key_file))
    manifest = open_bundle(made.bundle, trusted=[signing_key.verifying_key]).manifest
    yield Vendor(**{**made.__dict__, "manifest": manifest})
    made.store.close()


@dataclass
class Calls:
    """A running server and everything needed to call it."""

    server: RunningServer
    channel: grpc.Channel
    loop_thread: Any  # The fixture of tests/conftest.py.

    def __post_init__(self) -> None:
        self.inference = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.explanation = explanation_pb2_grpc.ExplanationServiceStub(self.channel)
        self.license = license_pb2_grpc.LicenseServiceStub(self.channel)

    def explain(self, *images: pb.Image, token: str | None = None, timeout: float = 20, **fields: Any) -> Any:
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        request = pb.ExplainRequest(images=images, **fields)
        return self.explanation.Explain(request, metadata=metadata, timeout=timeout)

    def stop(self, drain_s: float = 5) -> "Future[Any]":
        return self.loop_thread.submit(self.server.stop(drain_s=drain_s))


@pytest.fixture(scope="session")
def start_server(vendor: Vendor, loop_thread: Any) -> Iterator[Callable[..., Calls]]:
    """Starts servers; each argument is a setting, `now` is the clock."""
    running: list[Calls] = []

    def begin(
        *, now: Callable[[], datetime] = lambda: NOW, tracer_provider: Any = None, guard: Any = None, **changes: Any
    ) -> Calls:
        values: dict[str, Any] = {
            "bundle": vendor.bundle,
            "port": 0,
            "key_file": vendor.key_file,
            "issuers": (vendor.issuer_file,),
            "license_store": vendor.store_url,
            "threads": 1,
            # Noise of 8x8 pixels is hardly told apart, and that is not what most tests are about.
            "query_guard": "count",
        }
        settings = ServerSettings.load(**(values | changes))
        server = loop_thread.run(start(settings, now=now, tracer_provider=tracer_provider, guard=guard))
        channel = grpc.insecure_channel(server.target, options=[("grpc.max_receive_message_length", -1)])
        running.append(Calls(server, channel, loop_thread))
        return running[-1]

    yield begin
    for calls in running:
        calls.stop(drain_s=0).result(timeout=30)
        calls.channel.close()


@pytest.fixture(scope="session")
def calls(start_server: Callable[..., Calls]) -> Calls:
    """The ordinary server: with key, licenses and decoys for the unlicensed."""
    return start_server()


@pytest.fixture(scope="session")
def open_targets(start_server: Callable[..., Calls]) -> Calls:
    """A server where callers without a license choose the class that is explained."""
    return start_server(open_targets=True)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What tests compute with: the second implementation and makers of requests."""

    def tensor_image(array: np.ndarray) -> pb.Image:
        kind = {"uint8": pb.DATA_TYPE_UINT8, "float32": pb.DATA_TYPE_FLOAT32}[array.dtype.name]
        return pb.Image(tensor=pb.Tensor(dtype=kind, shape=array.shape, data=array.tobytes()))

    def to_array(tensor: pb.Tensor) -> np.ndarray:
        assert tensor.dtype == pb.DATA_TYPE_FLOAT32
        return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)

    return SimpleNamespace(
        classes=CLASSES,
        preprocessing=PREPROCESSING,
        now=NOW,
        logits=quadrant_means,
        maps=brightness_maps,
        tensor_image=tensor_image,
        to_array=to_array,
        prediction_graph=prediction_graph,
        explanation_graph=explanation_graph,
        graph=graph,
        prediction_nodes=prediction_nodes,
        images=lambda n, seed=0: np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32),
        pixels=lambda h, w, seed=0: np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8),
    )


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed certificates for localhost with their keys: of the server, a client and somebody else."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client", "thief"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    both = [(folder / f"{name}.pem").read_bytes() for name in ("client", "thief")]
    (folder / "clients.pem").write_bytes(b"".join(both))
    return folder


@pytest.fixture
def heard_hangups() -> Iterator[None]:
    """Lets programs hear of a closed terminal, which those that tests start under nohup would ignore as well."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def server_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog
