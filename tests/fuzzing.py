"""Changed inputs for everything that reads what others sent, and what must come of them.

A target is a reader and a few good inputs, which are made here. An input is changed in a few ways of chance, by a
seed: bits, bytes, parts left out, repeated and exchanged, numbers made large. Where a good signature or checksum would
keep a change from getting anywhere, the content is changed and signed again. Nothing but a result or a `KeylockError`
may come out, within seconds, and memory must not grow.
"""

import base64
import io
import json
import random
import re
import signal
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from PIL import Image

from keylock.auditreport import verify_audit
from keylock.bundle import open_bundle
from keylock.bundle.container import write_archive
from keylock.bundle.providers.hpke import read_hpke
from keylock.bundle.signature import sign_manifest
from keylock.cli.receipt import _digest_of_map
from keylock.crypto import jws
from keylock.crypto.digests import digest_of
from keylock.crypto.issuers import load_keys, to_jwks
from keylock.crypto.signing import SigningKey
from keylock.data.regions import read_boxes
from keylock.data.sources import open_data
from keylock.errors import KeylockError
from keylock.imaging.decoding import ImageLimits, decode, measure
from keylock.inference import inference_pb2 as oip
from keylock.licensing import AnswerDigests, Charge, License, UsageNote, issue, issue_access, verify, verify_access
from keylock.licensing.offline import OfflineLicense
from keylock.licensing.pem import armour, read_token
from keylock.licensing.receipt_keys import Certificate, ReceiptKey, delegate, open_checkpoint
from keylock.licensing.receipts import Receipt, ReceiptSigner, entry_of, parse_entry, trusts_any
from keylock.licensing.revocations import Revocations
from keylock.licensing.tokens import read_unverified
from keylock.text.class_names import normalise_class_name
from keylock.transparency import Checkpoint, ConsistencyProof, InclusionProof, leaf_hash
from keylock.v1 import admin_pb2, license_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_client import _answers
from keylock_client._checks import Asked, check_answer

__all__ = [
    "HANG_S",
    "MAX_GROWTH_BYTES",
    "Found",
    "RefusedError",
    "Target",
    "changed",
    "file_targets",
    "operator_targets",
    "public_requests",
    "rpc_targets",
    "run",
]

HANG_S = 10
# What an image may cost is a setting; with this one a picture within it does not look like memory that is lost.
LIMITS = ImageLimits(max_pixels=1_000_000)
MAX_GROWTH_BYTES = 50 * 2**20
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
_BLOCK = 200


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Attributes:
        name: What it reads.
        read: Reads an input.
        good: Inputs that are read without an error.
        contents: Contents that `wrap` makes inputs of.
        wrap: Signs, encodes or packs a content.
    """

    name: str
    read: Callable[[bytes], object]
    good: Sequence[bytes]
    contents: Sequence[bytes] = ()
    wrap: Callable[[bytes], bytes] = bytes


@dataclass
class Found:
    """What came of the inputs of a target.

    Attributes:
        inputs: How many there were.
        results: Those that were read.
        errors: How many raised what of the documented errors.
        faults: What must not be: another error, a hang, memory; the number of the input that shows it.
        longest_s: Of one input.
        growth_bytes: By which memory grew at most, within some hundreds of them.
    """

    inputs: int = 0
    results: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    growth_bytes: int = 0


class HangError(BaseException):
    """An input takes too long; no error that a reader would catch."""


def run(target: Target, *, seed: int, inputs: int, seconds: float = float("inf")) -> Found:
    """Gives a target changed inputs, always the same for a seed, until they or the time are at an end."""
    found, began = Found(), time.monotonic()
    # Pillow and pydicom tell about damage in warnings too, which are no errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run(target, found, began, seed=seed, inputs=inputs, seconds=seconds)


def _run(target: Target, found: Found, began: float, *, seed: int, inputs: int, seconds: float) -> Found:
    # What is imported and kept at first use counts for nothing.
    for good in (*target.good, *map(target.wrap, target.contents)):
        _one(target, good, found, "a good input")
    if found.results < len(target.good):
        found.faults.append(f"of {len(target.good)} good inputs {found.results} are read: {dict(found.errors)}")
    found = Found(faults=found.faults)
    while found.inputs < inputs and time.monotonic() - began < seconds:
        with _watched_memory(found):
            for _ in range(min(_BLOCK, inputs - found.inputs)):
                rng = random.Random(f"{seed}/{target.name}/{found.inputs}")  # noqa: S311
                _one(target, changed(target, rng), found, f"input {found.inputs} of seed {seed}")
                found.inputs += 1
                if time.monotonic() - began >= seconds:
                    break
    return found


def _one(target: Target, data: bytes, found: Found, which: str) -> None:
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target.read(data)
    except KeylockError as error:
        found.errors[type(error).__name__] += 1
    except HangError:
        found.faults.append(f"{which} takes more than {HANG_S} s")
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
        found.faults.append(f"{which} raises {type(error).__name__} ({str(error)[:100]}) in {where}")
    else:
        found.results += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    found.longest_s = max(found.longest_s, time.perf_counter() - began)


def _hang(*_: object) -> None:
    raise HangError


@contextmanager
def _watched_memory(found: Found) -> Iterator[None]:
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        yield
        return
    clear.write_text("5")  # Sets the peak back to what is used now.
    before = _memory("VmRSS")
    yield
    grown = _memory("VmHWM") - before
    found.growth_bytes = max(found.growth_bytes, grown)
    if grown > MAX_GROWTH_BYTES:
        found.faults.append(f"memory grew by {grown >> 20} MiB before input {found.inputs}")


def _memory(what: str) -> int:
    return int(re.search(what + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


# How an input is changed.

_NUMBERS = [b"0", b"-1", b"1e999", b"9" * 40, b"2147483648", b"9223372036854775808", b"NaN", b"null", b'""', b"[]"]
_BYTES = [b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"\x1b", b"\xe2\x80\xae", b"\xf0\x9f\x98\x80", b"\x7f", b"."]


def changed(target: Target, rng: random.Random) -> bytes:
    """Returns an input: a good one with a few changes, or a changed content in a good wrapping."""
    inner = bool(target.contents) and (not target.good or rng.random() < 0.6)
    corpus = target.contents if inner else target.good
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _change(data, rng, corpus)
    return target.wrap(bytes(data)) if inner else bytes(data)


def _change(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    place = rng.randrange(len(data) + 1)
    length = min(len(data) - place, rng.choice((1, 2, 4, 16, 256)))
    kind = rng.randrange(9)
    if kind == 0 and place < len(data):
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + 1] = rng.choice(_BYTES)
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length] * rng.choice((1, 2, 50))
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        data[place:place] = rng.randbytes(length)
    elif kind == 6:
        other = rng.choice(corpus)
        start = rng.randrange(len(other) + 1)
        data[place : place + length] = other[start : start + rng.choice((4, 64, 1024))]
    elif kind == 7 and (numbers := list(re.finditer(rb"-?\d+(\.\d+)?", data))):
        one = rng.choice(numbers)
        data[one.start() : one.end()] = rng.choice(_NUMBERS)
    else:
        data[place : place + length] = rng.choice((b"\0", b"\xff")) * length


# What is read.


def _signing_key(number: int) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def _from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return read_bytes


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    # As the client and the server get texts: those of the wire are always UTF-8.
    return lambda data: read(data.decode("utf-8", "replace"))


def _payload(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def file_targets(folder: Path, bundle: bytes, bundle_key: SigningKey) -> list[Target]:
    """Returns everything that reads files and texts.

    Args:
        folder: Where files are written.
        bundle: A `.klb` file.
        bundle_key: What signed it.
    """
    return [*_signed_texts(folder), *_keys(folder), *_bundles(folder, bundle, bundle_key), *_images(), *_data(folder),
            *_answers_of_servers()]  # fmt: skip


def _signed_texts(folder: Path) -> list[Target]:
    issuer, receipts = _signing_key(1), _signing_key(2)
    trusted, trusts = [issuer.verifying_key], trusts_any([issuer.verifying_key])
    license = License(
        id="lic_1", customer="Acme", models=("*", "tiny"), explainers=("*",), issued_at=NOW, not_before=NOW,
        expires=NOW + timedelta(days=9), features={"billing_id": "cus_1", "deep": [[{"a": 1.5}]]},
    )  # fmt: skip
    token = issue(license, issuer)
    access, _ = issue_access(license, issuer, now=NOW, lifetime_s=600, thumbprint="a" * 43)
    certificate = Certificate.read(
        delegate(receipts.verifying_key, issuer, not_before=NOW - timedelta(days=9), expires=NOW + timedelta(days=9))
    )
    key = ReceiptKey(receipts, certificate)
    digest = digest_of(b"")
    charge = Charge(
        license_id="lic_1", request_id="r", request_digest=digest, model_digest=digest, model_name="tiny",
        explainer="grad_cam", parameters={"layer": "x", "steps": [1, 2.5]}, target=-1, units=3, keyed=True, time=NOW,
        image_digests=(digest,),
        answer=AnswerDigests(maps=(digest,), scalings=(None,), predictions=(digest,), targets=(digest,)),
    )  # fmt: skip
    note = UsageNote(replayed=False, overage_units=0, remaining=5, resets_at=1_800_000_000)
    entry = entry_of(charge)
    receipt = ReceiptSigner(key).issue(entry, note)
    revoked = Revocations.none().with_key("abc", issuer, now=NOW).token
    state = Checkpoint("keylock/log/1", 1, leaf_hash(entry))
    signed = key.sign_checkpoint(state, at=NOW)
    inclusion, consistency = str(InclusionProof(0, (), signed)), str(ConsistencyProof(1, (), signed))
    offline = json.dumps({"format": "keylock-offline-license/v1", "license": token, "sealed_key": {"a": [1]}})

    def again(typ: str, signer: SigningKey, **members: object) -> Callable[[bytes], bytes]:
        return lambda payload: jws.sign(payload, signer, typ=typ, **members).encode()

    def header(content: bytes) -> bytes:
        # The payload is good and signed, and the header says something else.
        try:
            members = json.loads(content)
        except (ValueError, RecursionError):
            members = content.decode("utf-8", "replace")
        try:
            return jws.sign(entry, receipts, typ="keylock-receipt+jws", cert=certificate.token, usage=members).encode()
        except (ValueError, RecursionError, TypeError):
            return content

    def open_(text: str) -> object:
        return open_checkpoint(text, trusts)

    return [
        Target("license", _text(lambda text: verify(text, trusted, now=NOW)), [token.encode()],
               [_payload(token)], again("keylock-license+jws", issuer)),
        Target("license shown", _text(read_unverified), [token.encode()], [_payload(token)],
               again("keylock-license+jws", issuer)),
        Target("license file", lambda data: read_token(data, name="x"), [token.encode(), armour(token).encode()]),
        Target("access token", _text(lambda text: verify_access(text, trusted, now=NOW, thumbprint="a" * 43)),
               [access.encode()], [_payload(access)], again("keylock-access+jws", issuer)),
        Target("offline license", _from_file(folder / "offline", OfflineLicense.read), [offline.encode()]),
        Target("receipt", _text(lambda text: Receipt.verify(text, trusts)), [receipt.encode()], [entry],
               again("keylock-receipt+jws", receipts, cert=certificate.token,
                     usage={"overage_units": 0, "remaining": 5, "replayed": False, "resets_at": None})),
        Target("header of a receipt", _text(lambda text: Receipt.verify(text, trusts)), [receipt.encode()],
               [b'{"overage_units":0,"remaining":5,"replayed":false,"resets_at":1800000000}'], header),
        Target("certificate of a receipt key", _text(Certificate.read), [certificate.token.encode()],
               [_payload(certificate.token)], again("keylock-receipt-key+jws", issuer, jwk=trusted[0].to_jwk())),
        Target("receipt keys taken back", _text(lambda text: Revocations.read(text, trusts)), [revoked.encode()],
               [_payload(revoked)], again("keylock-receipt-revocations+jws", issuer, jwk=trusted[0].to_jwk())),
        Target("entry of the audit log", parse_entry, [entry]),
        Target("checkpoint", _text(open_), [signed.encode()]),
        Target("proof of inclusion", _text(lambda text: InclusionProof.parse(text).verify(entry, open_)),
               [inclusion.encode()]),
        Target("proof of consistency", _text(lambda text: ConsistencyProof.parse(text).verify(state, open_)),
               [consistency.encode()]),
        Target("signed audit", _text(verify_audit), [], [
            json.dumps({"format": "keylock-audit/v1", "audit": {"subject": {}, "attacks": [1.5]}, "page": digest,
                        "key_id": issuer.key_id, "public_key": trusted[0].to_jwk(), "signature": "a" * 86}).encode()]),
    ]  # fmt: skip


def _keys(folder: Path) -> list[Target]:
    key = _signing_key(3)
    private, public = folder / "own.key", folder / "own.pub"
    key.write(private)
    key.verifying_key.write(public)
    jwks = json.dumps(to_jwks([key.verifying_key, _signing_key(4).verifying_key])).encode()
    return [
        Target("JWKS", _from_file(folder / "jwks", load_keys), [jwks, public.read_bytes()]),
        Target("private key in PEM", _from_file(folder / "private", SigningKey.load), [private.read_bytes()]),
        Target("key of a recipient", _from_file(folder / "hpke", read_hpke), [], [private.read_bytes(), jwks]),
    ]


def _bundles(folder: Path, bundle: bytes, key: SigningKey) -> list[Target]:
    path = folder / "fuzzed.klb"
    path.write_bytes(bundle)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}

    def again(manifest: bytes) -> bytes:
        out = io.BytesIO()
        write_archive(out, {**files, "manifest.json": manifest, "manifest.sig": sign_manifest(manifest, key)})
        return out.getvalue()

    read = _from_file(path, lambda path: open_bundle(path, trusted=[key.verifying_key]))
    return [Target("bundle", read, [bundle], [files["manifest.json"]], again)]


def _images() -> list[Target]:
    rng = np.random.default_rng(1)
    colour = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 4096, (6, 5), dtype=np.uint16))
    good = []
    for image, kind, options in (
        (colour, "PNG", {}), (colour.convert("P"), "PNG", {}), (colour.convert("LA"), "PNG", {}), (deep, "PNG", {}),
        (colour, "JPEG", {}), (colour.convert("CMYK"), "JPEG", {"progressive": True}), (colour, "WEBP", {}),
        (colour, "WEBP", {"lossless": True}), (colour, "BMP", {}), (colour.convert("P"), "GIF", {}),
    ):  # fmt: skip
        good.append(_saved(image, kind, **options))
    tiffs = [_saved(image, "TIFF", compression=how) for image in (colour, deep)
             for how in ("raw", "tiff_lzw", "tiff_adobe_deflate")]  # fmt: skip
    targets = [
        Target("image", lambda data: decode(data, guess=True, limits=LIMITS), good),
        Target("TIFF image", lambda data: decode(data, guess=True, limits=LIMITS), tiffs),
        Target("scale of an image", lambda data: measure(data, limits=LIMITS), [*good[3:4], *tiffs[3:]]),
    ]
    dicom = _dicom(np.asarray(deep))
    if dicom is not None:
        targets.append(Target("DICOM image", lambda data: decode(data, dicom=True, guess=True, limits=LIMITS), [dicom]))
    return targets


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _dicom(pixels: Any) -> bytes | None:
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian
    except ImportError:
        return None
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2000, 3000
    dataset.PixelData = pixels.astype("<u2").tobytes()
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _data(folder: Path) -> list[Target]:
    rng = np.random.default_rng(2)
    arrays = {
        "train_images": rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(40) % 2,
        "test_images": rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(40) % 2,
        "class_names": np.array(["cat", "dog"]),
    }  # fmt: skip
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with zipfile.ZipFile(packed) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(files)

    def again(content: bytes) -> bytes:
        out = io.BytesIO()
        place = names[content[0] % len(names)] if content else names[0]
        with zipfile.ZipFile(out, "w") as archive:
            for name in names:
                archive.writestr(name, content[1:] if name == place else files[name])
        return out.getvalue()

    saved = io.BytesIO()
    np.save(saved, np.arange(6, dtype=np.float32).reshape(2, 3))
    boxes = folder / "boxed"
    boxes.mkdir()
    contents = [bytes([number]) + files[name] for number, name in enumerate(names)]
    return [
        Target("npz", _from_file(folder / "set.npz", lambda path: open_data(str(path))), [packed.getvalue()],
               contents, again),
        Target("map", _from_file(folder / "map.npy", _digest_of_map), [saved.getvalue()]),
        Target("boxes", _from_file(boxes / "boxes.csv", lambda _: read_boxes(boxes)),
               [b"file,x0,y0,x1,y1\ntrain/cat/1.png,1,2,3,4\n"]),
        Target("class name", _text(normalise_class_name), ["Café".encode(), b"cat"]),
    ]  # fmt: skip


def _answers_of_servers() -> list[Target]:
    described = pb.GetModelResponse(
        model=pb.Model(name="tiny", digest="sha256:0"), classes=["cat", "dog"],
        preprocessing=pb.Preprocessing(height=8, width=8, channels=3, resize="shorter_side_crop", mean=[0.5] * 3,
                                       std=[0.25] * 3),
        explainers=[pb.Explainer(name="grad_cam")],
    )  # fmt: skip
    described.explainers[0].parameters.update({"layer": "x", "sizes": [1, 2.5, {"a": None}]})
    info = _answers.model_info(described)
    explained = pb.ExplainResponse(request_id="r", model=described.model)
    explained.results.add(
        prediction=pb.Prediction(index=1, label="dog", probability=0.7, logits=[0, 1],
                                 top=[pb.ClassScore(index=1, label="dog", probability=0.7)]),
        map=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2, 3], data=np.arange(6, dtype="<f4").tobytes()),
        scaling=pb.Scaling(scale=2, offset=0), explainer=described.explainers[0],
        target=pb.ClassScore(index=1, label="dog", probability=0.7),
    )  # fmt: skip
    licensed = license_pb2.GetLicenseResponse()
    licensed.license.id, licensed.license.customer = "lic_1", "Acme"
    licensed.license.expires.seconds, licensed.license.rate.per_second = 1_800_000_000, 2
    used = license_pb2.GetUsageResponse(license_id="lic_1")
    used.quotas.add(period="day", used=3, limit=9).resets_at.seconds = 1_800_000_000

    def parsed(kind: Any, read: Callable[[Any], object]) -> Callable[[bytes], object]:
        def read_bytes(data: bytes) -> object:
            try:
                message = kind.FromString(data)
            except DecodeError:
                return None
            return read(message)

        return read_bytes

    def explanation(answer: Any) -> object:
        asked = Asked("r", pb.ExplainRequest(request_id="r", explainer="grad_cam"), [pb.Image(encoded=b"")])
        check_answer(answer, asked, licensed=False, license_id=None)
        maps = [one.map.data for one in answer.results]
        return _answers.explanations(answer, maps, sources=[None], info=info, receipt=None)  # type: ignore[list-item]

    return [
        Target("answer with an explanation", parsed(pb.ExplainResponse, explanation), [explained.SerializeToString()]),
        Target("answer about a model", parsed(pb.GetModelResponse, _answers.model_info),
               [described.SerializeToString()]),
        Target("answer about a license", parsed(license_pb2.GetLicenseResponse, _answers.license_info),
               [licensed.SerializeToString()]),
        Target("answer about use", parsed(license_pb2.GetUsageResponse, lambda one: _answers.quotas(one.quotas)),
               [used.SerializeToString()]),
    ]  # fmt: skip


# What a server is sent.


def public_requests() -> dict[str, Sequence[Message]]:
    """Returns good requests of every method with one answer that a server offers to the public, by its name."""
    image = pb.Image(encoded=_saved(Image.new("RGB", (9, 9), (200, 30, 60)), "PNG"))
    tensor = pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[3, 8, 8], data=bytes(768)))
    explain = pb.ExplainRequest(images=[image, tensor], explainer="brightness", target_index=1)
    explain.parameters.update({"power": 1})
    infer = oip.ModelInferRequest(model_name="tiny", id="1")
    infer.inputs.add(name="image", datatype="FP32", shape=[1, 3, 8, 8])
    infer.raw_input_contents.append(bytes(768))
    return {
        "keylock.v1.ExplanationService/Explain": [explain, pb.ExplainRequest(images=[image], request_id="again")],
        "keylock.v1.ExplanationService/GetModel": [pb.GetModelRequest(model_name="tiny")],
        "keylock.v1.ExplanationService/EstimateExplain": [pb.EstimateExplainRequest(images=3, explainer="coarse")],
        "keylock.v1.LicenseService/GetLicense": [license_pb2.GetLicenseRequest()],
        "keylock.v1.LicenseService/GetUsage": [license_pb2.GetUsageRequest()],
        "keylock.v1.LicenseService/ExchangeToken": [license_pb2.ExchangeTokenRequest(lifetime_s=300)],
        "keylock.v1.LicenseService/ProveReceipt": [license_pb2.ProveReceiptRequest(leaf_hash=bytes(32), since_size=1)],
        "keylock.v1.LicenseService/GetReceiptRevocations": [license_pb2.GetReceiptRevocationsRequest()],
        "inference.GRPCInferenceService/ModelInfer": [infer],
        "inference.GRPCInferenceService/ModelMetadata": [oip.ModelMetadataRequest(name="tiny", version="1")],
        "inference.GRPCInferenceService/ModelReady": [oip.ModelReadyRequest(name="tiny")],
        "inference.GRPCInferenceService/ServerLive": [oip.ServerLiveRequest()],
        "inference.GRPCInferenceService/ServerReady": [oip.ServerReadyRequest()],
        "inference.GRPCInferenceService/ServerMetadata": [oip.ServerMetadataRequest()],
        "inference.GRPCInferenceService/RepositoryIndex": [oip.RepositoryIndexRequest(ready=True)],
        "grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest(service="keylock.v1.ExplanationService")],
    }


def rpc_targets(channel: grpc.Channel, token: str) -> list[Target]:
    """Returns every method that a server offers to the public, with a license that is good.

    A good input has a code that says so, and no input may have `INTERNAL`, `UNKNOWN` or run out of its time.
    """
    image = pb.Image(encoded=_saved(Image.new("RGB", (9, 9), (200, 30, 60)), "PNG"))
    start = pb.ExplainStreamRequest()
    start.start.options.CopyFrom(pb.ExplainRequest(explainer="brightness"))
    item = pb.ExplainStreamRequest()
    item.image.number, item.image.image.encoded = 0, image.encoded
    targets = _methods(channel, token, public_requests())
    stream = channel.stream_stream("/keylock.v1.ExplanationService/ExplainStream")
    good = (start.SerializeToString(), item.SerializeToString())

    def first(data: bytes, **options: Any) -> object:
        return list(stream(iter([data, good[1]]), **options))

    def second(data: bytes, **options: Any) -> object:
        return list(stream(iter([good[0], data]), **options))

    for send in (first, second):
        name = f"rpc keylock.v1.ExplanationService/ExplainStream, {send.__name__} message"
        targets.append(Target(name, _caller(send, token), [], good))
    return targets


def operator_targets(channel: grpc.Channel, license_id: str) -> list[Target]:
    """Returns every method that a server offers to operators, but for `Drain`, which any message ends it by.

    Args:
        channel: Shows an operator's certificate.
        license_id: A license that may be lost.
    """
    revoke = admin_pb2.RevokeLicenseRequest(license_id=license_id)
    revoke.issued_before.FromDatetime(NOW - timedelta(days=9000))
    load = oip.RepositoryModelLoadRequest(repository_name="", model_name="tiny")
    unload = oip.RepositoryModelUnloadRequest(repository_name="", model_name="none")
    unload.parameters["unload_dependents"].bool_param = False
    requests: dict[str, Sequence[Message]] = {
        "keylock.v1.AdminService/GetStatus": [admin_pb2.GetStatusRequest()],
        "keylock.v1.AdminService/SuspendLicense": [admin_pb2.SuspendLicenseRequest(license_id=license_id, why="late")],
        "keylock.v1.AdminService/ReinstateLicense": [admin_pb2.ReinstateLicenseRequest(license_id=license_id)],
        "keylock.v1.AdminService/GetUsage": [admin_pb2.AdminServiceGetUsageRequest(license_id=license_id)],
        "keylock.v1.AdminService/RevokeLicense": [revoke, admin_pb2.RevokeLicenseRequest(token_id="t", why="lost")],
        "inference.GRPCInferenceService/RepositoryIndex": [oip.RepositoryIndexRequest(ready=True)],
        "inference.GRPCInferenceService/RepositoryModelLoad": [load],
        "inference.GRPCInferenceService/RepositoryModelUnload": [unload],
    }
    return _methods(channel, "", requests)


def _methods(channel: grpc.Channel, token: str, requests: Mapping[str, Sequence[Message]]) -> list[Target]:
    return [
        Target(f"rpc {name}", _caller(channel.unary_unary(f"/{name}"), token), [],
               [one.SerializeToString() for one in messages] + [b"\x0a\x01a"])
        for name, messages in requests.items()
    ]  # fmt: skip


class RefusedError(KeylockError):
    """A server has refused a message, with a code that says why."""


def _caller(call: Callable[..., object], token: str) -> Callable[[bytes], object]:
    shown = [("authorization", f"Bearer {token}")] if token else []

    def read(data: bytes) -> object:
        try:
            return call(data, metadata=shown, timeout=HANG_S - 1)
        except grpc.RpcError as error:
            code = error.code()
            if code in _FAULTS:
                raise AssertionError(f"the server answers {code.name}: {error.details()}") from None
            raise RefusedError(code.name) from None

    return read


_FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
