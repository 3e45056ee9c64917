"""Bundles go to a real registry and come back, whole or not at all."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import uuid

import pytest

from keylock.bundle import add_model_signature, export_public, open_bundle, verify_model_signature
from keylock.crypto.ecdsa import EcdsaSigningKey
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, RegistryError
from keylock.registries import Reference, Registry, pull_bundle, push_bundle

MODEL = "application/vnd.cncf.model."


def opened(path):
    return open_bundle(path, trusted=None)


@pytest.fixture
def place(registry):
    """A place of its own in the registry."""
    return Reference(registry.host, f"tests/{uuid.uuid4().hex}", "1")


@pytest.fixture
def pushed(place, bundle):
    with Registry(place) as registry:
        return push_bundle(opened(bundle), registry)


def pull(place, out, **options):
    with Registry(place) as registry:
        return pull_bundle(registry, out, **options)


def manifest_of(place):
    with Registry(place) as registry:
        return json.loads(registry.manifest()[0])


def nothing_is_left(folder, *but):
    return sorted(path.name for path in folder.iterdir() if path.name not in but) == []


@pytest.mark.parametrize(("form", "out"), [("m", "again"), ("m", "again.klb"), ("m.klb", "again"), ("m.klb", "b.klb")])
def test_a_bundle_comes_back_as_it_was(place, make_bundle, tmp_path, form, out, signing_key):
    bundle = make_bundle(tmp_path / form)
    with Registry(place) as registry:
        pushed = push_bundle(opened(bundle), registry)
    assert pushed.has_key
    pulled = pull(place, tmp_path / out, trusted=[signing_key.verifying_key])
    assert pulled.digest == pushed.digest
    assert pulled.left == ()
    assert pulled.bundle.trusted
    assert opened(tmp_path / out).all_files() == opened(bundle).all_files()
    assert nothing_is_left(tmp_path, bundle.name, out)


def test_a_digest_names_a_bundle_for_good(place, pushed, tmp_path, make_bundle, bundle):
    other = make_bundle(tmp_path / "other")
    with Registry(place) as registry:
        later = push_bundle(opened(other), registry)
    assert later.digest != pushed.digest
    first = Reference(place.host, place.name, digest=pushed.digest)
    assert pull(first, tmp_path / "first").bundle.all_files() == opened(bundle).all_files()
    assert pull(place, tmp_path / "now").bundle.all_files() == opened(other).all_files()


def test_the_artefact_is_one_of_modelpack(place, bundle, pushed):
    manifest = manifest_of(place)
    assert manifest["artifactType"] == MODEL + "manifest.v1+json"
    assert manifest["config"]["mediaType"] == MODEL + "config.v1+json"
    names = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    assert names.keys() == opened(bundle).all_files().keys()
    assert names["delta.sealed"]["mediaType"] == MODEL + "weight.v1.raw"
    assert names["graphs/predict.onnx"]["mediaType"] == MODEL + "weight.v1.raw"
    assert names["manifest.json"]["mediaType"] == MODEL + "weight.config.v1.raw"
    for name, content in opened(bundle).all_files().items():
        assert names[name]["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
        assert names[name]["size"] == len(content)


def test_a_second_implementation_reads_it(place, bundle, pushed, tmp_path, monkeypatch):
    other = pytest.importorskip("modelpack_client", reason="pip install modelpack-client, a client of ModelPack")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    client = other.ModelPackClient(insecure=True)
    found = client.pull(str(place), tmp_path / "theirs")
    assert found.config["descriptor"]["name"] == "noise"
    assert opened(tmp_path / "theirs").all_files() == opened(bundle).all_files()


def test_what_the_registry_has_is_not_sent_again(place, bundle, pushed, tmp_path):
    with Registry(place) as registry:
        again = push_bundle(opened(bundle), registry)
    assert (again.sent, again.digest) == (0, pushed.digest)
    export_public(opened(bundle), tmp_path / "public")
    with Registry(place) as registry:
        copy = push_bundle(opened(tmp_path / "public"), registry)
    assert (copy.sent, copy.has_key) == (0, False)


def test_a_public_pull_leaves_the_sealed_layers_in_the_registry(place, bundle, pushed, tmp_path, registry):
    layers = {one["annotations"]["org.cncf.model.filepath"]: one for one in manifest_of(place)["layers"]}
    for name in ("delta.sealed", "key.sealed"):
        # What is not there cannot be fetched: the pull below works all the same.
        registry.blob(layers[name]["digest"]).unlink()
    pulled = pull(place, tmp_path / "public", public=True)
    assert pulled.left == ("delta.sealed", "key.sealed")
    assert (pulled.bundle.has_key, pulled.bundle.has_delta) == (False, False)
    all_of_it = opened(bundle).all_files()
    assert pulled.bundle.all_files() == {name: all_of_it[name] for name in all_of_it.keys() - set(pulled.left)}
    with pytest.raises(RegistryError):
        pull(place, tmp_path / "all")
    assert nothing_is_left(tmp_path, bundle.name, "public")


def test_a_public_push_sends_no_sealed_layer(place, bundle, tmp_path):
    with Registry(place) as registry:
        pushed = push_bundle(opened(bundle), registry, public=True)
    assert not pushed.has_key
    names = {one["annotations"]["org.cncf.model.filepath"] for one in manifest_of(place)["layers"]}
    assert names == opened(bundle).all_files().keys() - {"key.sealed", "delta.sealed"}
    assert pull(place, tmp_path / "got").left == ()


def test_a_model_signature_goes_along_and_fits_what_is_pulled(place, bundle, tmp_path):
    key = EcdsaSigningKey.generate()
    add_model_signature(opened(bundle), key)
    with Registry(place) as registry:
        push_bundle(opened(bundle), registry)
    verify_model_signature(pull(place, tmp_path / "got", public=True).bundle, key.verifying_key)
    verify_model_signature(pull(place, tmp_path / "all").bundle, key.verifying_key)


def test_a_changed_byte_in_the_registry_is_refused_and_nothing_is_left(place, bundle, pushed, tmp_path, registry):
    for layer in manifest_of(place)["layers"]:
        blob = registry.blob(layer["digest"])
        kept = blob.read_bytes()
        for changed in (bytes([kept[0] ^ 1]) + kept[1:], kept[:-1], kept + b"x"):
            blob.write_bytes(changed)
            with pytest.raises(RegistryError, match=r"is not the one asked for|broke off"):
                pull(place, tmp_path / "got")
        blob.write_bytes(kept)
    assert nothing_is_left(tmp_path, bundle.name)
    pull(place, tmp_path / "got")


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(place, pushed, tmp_path, registry):
    blob = registry.blob(pushed.digest)
    kept = blob.read_bytes()
    blob.write_bytes(kept.replace(b'"noise"', b'"n0ise"'))
    try:
        with pytest.raises(RegistryError):
            pull(Reference(place.host, place.name, digest=pushed.digest), tmp_path / "got")
    finally:
        blob.write_bytes(kept)


def test_another_issuer_is_refused_before_anything_large_is_fetched(place, bundle, pushed, tmp_path, registry):
    weights = next(one for one in manifest_of(place)["layers"] if one["size"] == 20_000)
    registry.blob(weights["digest"]).write_bytes(b"unreadable")
    with pytest.raises(BundleError, match=f"the bundle {place} was signed by .* not among the trusted"):
        pull(place, tmp_path / "got", trusted=[SigningKey.generate().verifying_key])
    assert nothing_is_left(tmp_path, bundle.name)


def test_a_place_that_is_taken_is_said_before_anything_is_fetched(tmp_path, make_bundle):
    nowhere = Reference("localhost:1", "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for overwrite, says in ((False, "exists: choose another place"), (True, "is not a bundle and is not replaced")):
        with pytest.raises(BundleError, match=says):
            pull(nowhere, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(BundleError, match="there is no folder"):
        pull(nowhere, tmp_path / "none" / "m")
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_a_bundle_is_replaced_where_that_is_wanted(place, bundle, pushed, tmp_path, make_bundle):
    out = make_bundle(tmp_path / "old")
    pull(place, out, overwrite=True)
    assert opened(out).all_files() == opened(bundle).all_files()


def test_a_registry_that_is_away_or_has_nothing_is_said(registry, tmp_path, bundle):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = Reference(f"localhost:{probe.getsockname()[1]}", "m")
    with pytest.raises(RegistryError, match=r"cannot be reached .nothing listens there."):
        pull(away, tmp_path / "got")
    with pytest.raises(RegistryError, match="cannot be reached"), Registry(away) as asked:
        push_bundle(opened(bundle), asked)
    none = Reference(registry.host, "tests/none")
    with pytest.raises(RegistryError, match=f"there is no {none} in the registry"):
        pull(none, tmp_path / "got")
    with pytest.raises(RegistryError, match=r"nothing\.invalid cannot be reached .there is no such host"):
        pull(Reference("nothing.invalid", "m"), tmp_path / "got")
    assert nothing_is_left(tmp_path, bundle.name)


def test_an_image_is_told_from_a_model(place, tmp_path):
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "", "size": 2},
        "layers": [],
    }
    with Registry(place) as registry:
        document["config"]["digest"] = digest = "sha256:" + hashlib.sha256(b"{}").hexdigest()
        registry.send_blob(digest, b"{}")
        registry.send_manifest(json.dumps(document).encode())
    with pytest.raises(RegistryError, match=r"not a model of ModelPack but application/vnd\.oci\.image\.config"):
        pull(place, tmp_path / "got")


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", ".hidden", "a//b", "manifest.json", None])
def test_names_that_no_bundle_has_are_refused(place, pushed, bundle, tmp_path, name):
    manifest = manifest_of(place)
    layer = next(one for one in manifest["layers"] if one["annotations"]["org.cncf.model.filepath"] == "key.sealed")
    layer["annotations"] = {} if name is None else {"org.cncf.model.filepath": name}
    with Registry(place) as registry:
        registry.send_manifest(json.dumps(manifest).encode())
    with pytest.raises(RegistryError, match="its layers are not the files of a bundle"):
        pull(place, tmp_path / "got")
    assert nothing_is_left(tmp_path, bundle.name)


def test_a_model_of_another_program_is_told_from_a_bundle(place, pushed, tmp_path):
    manifest = manifest_of(place)
    manifest["layers"] = [
        one for one in manifest["layers"] if "manifest" not in one["annotations"]["org.cncf.model.filepath"]
    ]
    with Registry(place) as registry:
        registry.send_manifest(json.dumps(manifest).encode())
    with pytest.raises(RegistryError, match=r"is a model, and not a bundle of keylock: it has no manifest\.json"):
        pull(place, tmp_path / "got")


def test_a_pull_that_is_stopped_leaves_nothing(place, bundle, pushed, tmp_path):
    def stop(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(place, tmp_path / "got", progress=stop)
    assert nothing_is_left(tmp_path, bundle.name)


def test_a_push_that_breaks_off_leaves_the_tag_as_it_was(place, pushed, bundle, make_bundle, tmp_path):
    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with Registry(place) as registry, pytest.raises(KeyboardInterrupt):
        push_bundle(opened(make_bundle(tmp_path / "other")), registry, progress=stop)
    assert pull(place, tmp_path / "got").digest == pushed.digest


class Relay:
    """Passes bytes on to a registry and counts all of them, headers too, in both directions."""

    def __init__(self, host):
        self.counted, self._target = 0, ("127.0.0.1", int(host.rpartition(":")[2]))
        self._lock, self._listener = threading.Lock(), socket.create_server(("127.0.0.1", 0))
        self.connections, self._sockets, self._threads = 0, [], []
        self.host = f"localhost:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, run, *given):
        thread = threading.Thread(target=run, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self.connections += 1
            self._sockets += [near, far]
            for ends in ((near, far), (far, near)):
                self._start(self._pass, *ends)

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    self.counted += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._sockets):
            each.close()


def test_the_bytes_on_the_wire_are_those_of_the_bundle_and_one_in_a_hundred(registry, make_bundle, tmp_path):
    path = make_bundle(tmp_path / "large", size=1_000_000)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    relay = Relay(registry.host)
    try:
        place = Reference(relay.host, f"tests/{uuid.uuid4().hex}", "1")
        with Registry(place) as asked:
            push_bundle(opened(path), asked)
        there, relay.counted = relay.counted, 0
        pull(place, tmp_path / "again")
        back = relay.counted
        assert relay.connections == 2
    finally:
        relay.close()
    print(f"bundle {size}, pushed {there} (+{there / size - 1:.3%}), pulled {back} (+{back / size - 1:.3%})")  # noqa: T201
    assert size < there < 1.01 * size
    assert size < back < 1.01 * size


def test_files_are_written_with_modes_of_a_bundle(place, pushed, tmp_path):
    before = os.umask(0)
    try:
        pull(place, tmp_path / "got")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "got").rglob("*")}
    assert modes == {0o644, 0o755}
