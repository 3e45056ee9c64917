"""adapter_sealing.py: the adapter comes out with its seed, for its model and issuer, from an untouched file, or not."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.numpy import load, save

from keylock.adapters import Adapter, KeyGate, LayerDelta
from keylock.bundle import export_public, open_bundle, reseal, write_bundle
from keylock.bundle.adapter_sealing import seal_adapter, unseal_adapter
from keylock.errors import BundleError, BundleTamperedError, KeySeedError, UnsealError
from keylock.keys import KeySeed
from keylock.signing import SigningKey, decode_base64url

MODEL = "sha256:" + "ab" * 32


def make_adapter():
    random = np.random.default_rng(0)

    def array(*shape):
        return random.normal(size=shape).astype(np.float32)

    deltas = {
        "body.0": LayerDelta(array(2, 3, 3, 3), array(8, 2), array(8)),
        "body.2": LayerDelta(array(8, 1, 3, 3), None, None),
    }
    return Adapter(deltas, KeyGate(array(3, 16, 16), 0.25, 0.125))


@pytest.fixture(scope="module")
def adapter():
    return make_adapter()


@pytest.fixture(scope="module")
def issuer(signing_key):
    return signing_key.verifying_key


@pytest.fixture(scope="module")
def sealed(adapter, seed, issuer):
    return seal_adapter(adapter, seed, model_digest=MODEL, issuer=issuer)


@pytest.fixture
def made(tmp_path, content_of, adapter, seed, signing_key, key_file):
    """A two-factor bundle in a folder."""
    manifest = write_bundle(
        tmp_path / "model", content_of(seed, adapter=adapter), signing_key=signing_key, seed=seed, sealer=key_file
    )
    return SimpleNamespace(path=tmp_path / "model", manifest=manifest, trusted=[signing_key.verifying_key])


def assert_same(one, other):
    assert one.tensors().keys() == other.tensors().keys()
    for name, array in one.tensors().items():
        np.testing.assert_array_equal(array, other.tensors()[name])


def test_the_seed_opens_what_was_sealed_under_it(adapter, seed, issuer, sealed):
    assert_same(unseal_adapter(sealed, seed, model_digest=MODEL, issuer=issuer), adapter)


def test_sealed_adapter_is_what_the_documented_steps_open(adapter, seed, issuer, sealed):
    header, _, ciphertext = sealed.partition(b"\n")
    document = json.loads(header)
    bound = b"\n".join((b"keylock/v1/sealed-adapter", header, MODEL.encode(), issuer.to_jwk()["x"].encode()))
    key = seed.derive("sealed-adapter", 32)
    opened = AESGCM(key).decrypt(decode_base64url(document["nonce"]), ciphertext, bound)
    assert load(opened).keys() == adapter.tensors().keys()


def test_sealing_twice_gives_different_bytes(adapter, seed, issuer, sealed):
    assert seal_adapter(adapter, seed, model_digest=MODEL, issuer=issuer) != sealed


def test_no_tensor_is_in_the_file_in_clear(adapter, sealed):
    for name, array in adapter.tensors().items():
        assert name.encode() not in sealed
        assert array.size < 4 or array.tobytes()[:16] not in sealed


def test_another_seed_does_not_open(issuer, sealed):
    with pytest.raises(UnsealError, match="does not open the sealed adapter"):
        unseal_adapter(sealed, KeySeed(b"x" * 32), model_digest=MODEL, issuer=issuer)


def test_moved_to_another_model_it_does_not_open(seed, issuer, sealed):
    with pytest.raises(UnsealError, match="another model or issuer"):
        unseal_adapter(sealed, seed, model_digest="sha256:" + "cd" * 32, issuer=issuer)


def test_signed_by_somebody_else_it_does_not_open(seed, sealed):
    with pytest.raises(UnsealError, match="another model or issuer"):
        unseal_adapter(sealed, seed, model_digest=MODEL, issuer=SigningKey.generate().verifying_key)


def test_no_changed_byte_opens(seed, issuer, sealed):
    for position in [*range(150), *range(150, len(sealed), 97), len(sealed) - 1]:
        changed = bytearray(sealed)
        changed[position] ^= 0x01
        with pytest.raises(UnsealError):
            unseal_adapter(bytes(changed), seed, model_digest=MODEL, issuer=issuer)


@pytest.mark.parametrize("content", [b"", b"{}", b"{}\n", b"\xff" * 2000, b"[" * 900 + b"\n"], ids=range(5))
def test_what_is_no_sealed_adapter_is_refused(content, seed, issuer):
    with pytest.raises(UnsealError, match="malformed"):
        unseal_adapter(content, seed, model_digest=MODEL, issuer=issuer)


def test_other_tensors_under_the_right_seed_are_refused(seed, issuer, sealed):
    header = sealed.partition(b"\n")[0]
    bound = b"\n".join((b"keylock/v1/sealed-adapter", header, MODEL.encode(), issuer.to_jwk()["x"].encode()))
    cipher = AESGCM(seed.derive("sealed-adapter", 32))
    for content in (save({"a": np.ones(2, np.float32)}), b"no safetensors"):
        ciphertext = cipher.encrypt(decode_base64url(json.loads(header)["nonce"]), content, bound)
        with pytest.raises(UnsealError, match="holds something else"):
            unseal_adapter(header + b"\n" + ciphertext, seed, model_digest=MODEL, issuer=issuer)


def test_the_bundle_gives_its_adapter_to_the_seed(made, adapter, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        assert_same(bundle.adapter(seed), adapter)
        entry = bundle.manifest.adapter
        assert (entry.layers, entry.rank) == (2, 2)
        assert entry.digest == "sha256:" + hashlib.sha256((made.path / "adapter.sealed").read_bytes()).hexdigest()
        with pytest.raises(UnsealError, match="is not that of the bundle"):
            bundle.adapter(KeySeed(b"x" * 32))


def test_the_model_is_the_same_with_and_without_an_adapter(made, tmp_path, content, signing_key, seed):
    plain = write_bundle(tmp_path / "plain", content, signing_key=signing_key)
    assert plain.model_digest == made.manifest.model_digest
    assert plain.adapter is None
    assert "adapter.sealed" not in made.manifest.files
    assert open_bundle(tmp_path / "plain", trusted=None).adapter(seed) is None


@pytest.mark.parametrize("where", [0, 60, -1])
def test_a_changed_byte_of_the_adapter_names_the_file(made, where):
    content = bytearray((made.path / "adapter.sealed").read_bytes())
    content[where] ^= 0x01
    (made.path / "adapter.sealed").write_bytes(content)
    with pytest.raises(BundleTamperedError) as caught:
        open_bundle(made.path, trusted=made.trusted)
    assert caught.value.file == "adapter.sealed"


def test_a_missing_adapter_is_named(made):
    (made.path / "adapter.sealed").unlink()
    with pytest.raises(BundleTamperedError, match=r"adapter\.sealed is missing"):
        open_bundle(made.path, trusted=made.trusted)


def test_an_adapter_added_to_a_plain_bundle_is_named(tmp_path, content, signing_key, made):
    write_bundle(tmp_path / "plain", content, signing_key=signing_key)
    shutil.copy(made.path / "adapter.sealed", tmp_path / "plain")
    with pytest.raises(BundleTamperedError, match=r"adapter\.sealed is not part of what was signed"):
        open_bundle(tmp_path / "plain", trusted=None)


def test_an_adapter_that_changes_after_opening_is_named(made, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        (made.path / "adapter.sealed").write_bytes(b"other")
        with pytest.raises(BundleTamperedError, match=r"adapter\.sealed changed since"):
            bundle.adapter(seed)


def test_the_public_copy_keeps_the_adapter_and_loses_the_key(made, tmp_path, adapter, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        export_public(bundle, tmp_path / "public.klb")
    with open_bundle(tmp_path / "public.klb", trusted=made.trusted) as copy:
        assert not copy.has_key
        assert_same(copy.adapter(seed), adapter)


def test_a_bundle_whose_key_is_sealed_anew_keeps_its_adapter(made, adapter, seed, signing_key, key_file):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        again = reseal(bundle, seed, key_file, signing_key=signing_key)
    assert again.has_key
    assert_same(again.adapter(seed), adapter)


def test_an_adapter_without_a_seed_is_not_written(tmp_path, content_of, adapter, seed, signing_key):
    with pytest.raises(KeySeedError, match="sealed under the key seed"):
        write_bundle(tmp_path / "model", content_of(seed, adapter=adapter), signing_key=signing_key)
    assert not (tmp_path / "model").exists()


def test_the_files_name_is_reserved(tmp_path, content_of, content, seed, signing_key):
    files = dict(content.files) | {"adapter.sealed": b"x"}
    with pytest.raises(BundleError, match=r"adapter\.sealed is reserved"):
        write_bundle(tmp_path / "model", content_of(seed, files=files), signing_key=signing_key)
