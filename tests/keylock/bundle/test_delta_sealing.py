"""delta_sealing.py: a delta opens with its trigger, for its model and issuer, from an untouched file, or not at all."""

import hashlib
import json
import secrets
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.numpy import load, save

from keylock.bundle import (
    add_model_signature,
    export_public,
    open_bundle,
    reseal,
    verify_model_signature,
    write_bundle,
)
from keylock.bundle.delta_sealing import SealedDelta, seal_delta, secret_of_key
from keylock.bundle.key_entry import KeyEntry
from keylock.crypto.ecdsa import EcdsaSigningKey
from keylock.crypto.signing import SigningKey, canonical_json, decode_base64url, encode_base64url
from keylock.errors import BundleError, BundleTamperedError, InputError, UnsealError
from keylock.trigger import trigger_secret
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

MODEL = "sha256:" + "ab" * 32
SHAPE, STD = (3, 16, 16), (0.25, 0.25, 0.25)
SECRETS = [bytes([number]) * 32 for number in (1, 2, 3)]
STRANGER = bytes(32)


@pytest.fixture(scope="module")
def delta():
    random = np.random.default_rng(0)
    shapes = {"body.0.weight": (8, 3, 3, 3), "body.0.bias": (8,), "head.weight": (3, 8), "scale": ()}
    return Delta({name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def issuer(signing_key):
    return signing_key.verifying_key


@pytest.fixture(scope="module")
def sealed(delta, issuer):
    """Sealed under three triggers."""
    return seal_delta(delta, SECRETS, model_digest=MODEL, issuer=issuer)


@pytest.fixture
def opening(issuer):
    """Opens content with a secret, as the first trigger's holder does unless told otherwise."""

    def open_(content, secret=SECRETS[0], *, model=MODEL, issuer=issuer):
        return SealedDelta(bytes(content), model_digest=model, issuer=issuer).open(secret)

    return open_


def assert_same(one, other):
    assert one.names == other.names
    for name, array in one.reveal().items():
        np.testing.assert_array_equal(array, other.reveal()[name])
        assert array.shape == other.reveal()[name].shape


def parts_of(content):
    head, _, ciphertext = content.partition(b"\n")
    return json.loads(head), ciphertext


def join(document, ciphertext):
    return canonical_json(document) + b"\n" + ciphertext


@pytest.mark.parametrize("secret", SECRETS, ids=["first", "second", "third"])
def test_each_trigger_opens_it(secret, sealed, delta, issuer, opening):
    assert_same(opening(sealed, secret), delta)
    found = SealedDelta(sealed, model_digest=MODEL, issuer=issuer)
    assert found.opens_with(secret)
    assert found.find([STRANGER, secret, SECRETS[0]]) == secret


def test_no_other_secret_opens_it(sealed, issuer, opening):
    found = SealedDelta(sealed, model_digest=MODEL, issuer=issuer)
    almost = [bytes([*secret[:31], secret[31] ^ 1]) for secret in SECRETS]
    assert not any(found.opens_with(secret) for secret in (STRANGER, *almost))
    assert found.find([STRANGER, *almost]) is None
    assert found.find([]) is None
    with pytest.raises(UnsealError, match="does not open the sealed delta"):
        opening(sealed, STRANGER)


def test_sealed_delta_is_what_the_documented_steps_open(delta, sealed, issuer):
    header, ciphertext = parts_of(sealed)
    head = sealed.partition(b"\n")[0]
    assert head == canonical_json(header)
    assert (header["format"], header["cipher"], len(header["keys"])) == ("keylock-sealed-delta/v2", "AES-256-GCM", 3)
    bound = MODEL.encode() + b"\n" + issuer.to_jwk()["x"].encode()
    keys = set()
    for secret, entry in zip(SECRETS, header["keys"], strict=True):
        nonce, wrapped = decode_base64url(entry["nonce"]), decode_base64url(entry["wrapped"])
        keys.add(AESGCM(secret).decrypt(nonce, wrapped, b"keylock/v2/wrapped-delta-key\n" + bound))
    [key] = keys
    associated = b"keylock/v2/sealed-delta\n" + head + b"\n" + bound
    plain = AESGCM(key).decrypt(decode_base64url(header["nonce"]), ciphertext, associated)
    found = load(plain)
    assert found.keys() == delta.reveal().keys()
    for name, array in delta.reveal().items():
        np.testing.assert_array_equal(found[name], array)


def test_sealing_twice_repeats_nothing(delta, issuer, sealed):
    again = seal_delta(delta, SECRETS, model_digest=MODEL, issuer=issuer)
    (one, first), (other, second) = parts_of(sealed), parts_of(again)
    numbers = [one["nonce"], other["nonce"], *(entry[name] for entry in one["keys"] + other["keys"] for name in entry)]
    assert len(set(numbers)) == len(numbers)
    assert first[:64] != second[:64]


def test_no_array_name_or_secret_is_in_the_file_in_clear(delta, sealed):
    for name, array in delta.reveal().items():
        assert name.encode() not in sealed
        assert array.size < 4 or array.tobytes()[:16] not in sealed
    for secret in SECRETS:
        assert secret not in sealed
        assert encode_base64url(secret).encode() not in sealed


def test_moved_to_another_model_it_does_not_open(sealed, opening):
    with pytest.raises(UnsealError, match="another model or issuer"):
        opening(sealed, model="sha256:" + "cd" * 32)


def test_signed_by_somebody_else_it_does_not_open(sealed, opening):
    with pytest.raises(UnsealError, match="another model or issuer"):
        opening(sealed, issuer=SigningKey.generate().verifying_key)


def test_no_changed_byte_opens(sealed, opening):
    header = len(sealed.partition(b"\n")[0])
    for position in [*range(0, header + 20, 3), *range(header, len(sealed), 31), len(sealed) - 1]:
        changed = bytearray(sealed)
        changed[position] ^= 0x01
        with pytest.raises(UnsealError):
            opening(changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "keylock-sealed-delta/v1"}, "malformed"),
        ({"format": "keylock-sealed-adapter/v1"}, "malformed"),
        ({"cipher": "none"}, "malformed"),
        ({"keys": []}, "malformed"),
        ({"keys": None}, "malformed"),
        ({"keys": [{"nonce": "AAAA", "wrapped": "AAAA"}]}, "malformed"),
        ({"keys": [{"nonce": "AAAAAAAAAAAAAAAA", "wrapped": "?"}]}, "malformed"),
        ({"nonce": ""}, "malformed"),
        ({"nonce": "AAAA"}, "malformed"),
        ({"nonce": "AAAAAAAAAAAAAAAA"}, "damaged"),
        ({"more": 1}, "malformed"),
    ],
    ids=str,
)
def test_each_field_of_the_header_counts(change, says, sealed, opening):
    document, ciphertext = parts_of(sealed)
    with pytest.raises(UnsealError, match=says):
        opening(join(document | change, ciphertext))


def test_a_header_that_says_the_same_in_other_bytes_does_not_open(sealed, opening):
    document, ciphertext = parts_of(sealed)
    turned = document | {"keys": document["keys"][::-1]}
    fewer = document | {"keys": document["keys"][:1]}
    spaced = json.dumps(document).encode() + b"\n" + ciphertext
    for content in (join(turned, ciphertext), join(fewer, ciphertext), spaced):
        with pytest.raises(UnsealError, match="damaged"):
            opening(content)


def test_a_field_that_is_missing_is_no_header(sealed, opening):
    document, ciphertext = parts_of(sealed)
    for name in ("keys", "nonce"):
        rest = {field: value for field, value in document.items() if field != name}
        with pytest.raises(UnsealError, match="malformed"):
            opening(join(rest, ciphertext))


def test_what_is_cut_is_refused_wherever_it_is_cut(sealed, opening):
    header = len(sealed.partition(b"\n")[0])
    for length in (0, 1, header // 2, header, header + 1, header + 16, header + 17, len(sealed) // 2, len(sealed) - 1):
        with pytest.raises(UnsealError):
            opening(sealed[:length])
    with pytest.raises(UnsealError, match="damaged"):
        opening(sealed + b"\0")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"{}\n", b"\xff" * 2000, b"[" * 900 + b"\n", b"null\n" + bytes(100), b'{"a":' * 100_000],
    ids=range(7),
)
def test_what_is_no_sealed_delta_is_refused(content, opening):
    with pytest.raises(UnsealError, match="malformed"):
        opening(content)


def test_a_header_that_is_too_large_is_not_even_parsed(sealed, opening):
    document, ciphertext = parts_of(sealed)
    padded = canonical_json(document) + b" " * (256 * 1024) + b"\n" + ciphertext
    with pytest.raises(UnsealError, match="malformed"):
        opening(padded)


def test_a_thousand_triggers_open_it_and_more_or_none_are_refused(delta, issuer, opening):
    many = [hashlib.sha256(bytes([number % 256, number // 256])).digest() for number in range(1001)]
    content = seal_delta(delta, many[:1000], model_digest=MODEL, issuer=issuer)
    for secret in (many[0], many[999]):
        assert_same(opening(content, secret), delta)
    for wrong in (many, []):
        with pytest.raises(BundleError, match="1 to 1000 triggers"):
            seal_delta(delta, wrong, model_digest=MODEL, issuer=issuer)


def test_something_else_under_the_right_secret_is_refused(sealed, issuer, opening):
    header, _ = parts_of(sealed)
    bound = MODEL.encode() + b"\n" + issuer.to_jwk()["x"].encode()
    key, nonce = secrets.token_bytes(32), bytes(12)
    wrapped = AESGCM(SECRETS[0]).encrypt(nonce, key, b"keylock/v2/wrapped-delta-key\n" + bound)
    entry = {"nonce": encode_base64url(nonce), "wrapped": encode_base64url(wrapped)}
    head = canonical_json(header | {"keys": [entry], "nonce": encode_base64url(nonce)})
    contents = (
        b"no safetensors",
        save({"a": np.ones(2)}),
        save({"a": np.array([np.nan], np.float32)}),
        save({}),
    )
    for content in contents:
        ciphertext = AESGCM(key).encrypt(nonce, content, b"keylock/v2/sealed-delta\n" + head + b"\n" + bound)
        with pytest.raises(UnsealError, match="holds something else"):
            opening(head + b"\n" + ciphertext)


# Keys and bundles


def key_of(seed, *, tile=8, shape=SHAPE):
    return Key.derive(seed, shape=shape, std=STD[: shape[0]], tile=tile)


def test_the_secret_of_a_key_is_that_of_its_trigger_wherever_it_lies(seed):
    key = key_of(seed)
    assert secret_of_key(key) == trigger_secret(key.signs())
    assert len(secret_of_key(key)) == 32
    # Neither the images' size nor the strength is in it: they are public, and the signs are what is read.
    larger = Key.derive(seed, shape=(3, 40, 24), std=(0.5, 0.1, 0.2), strength=16 / 255)
    assert secret_of_key(larger) == secret_of_key(key)
    assert secret_of_key(key_of(KeySeed(b"x" * 32))) != secret_of_key(key)


def test_a_trigger_that_is_not_all_on_the_images_has_no_secret(seed):
    with pytest.raises(InputError, match="does not fit"):
        secret_of_key(key_of(seed, shape=(3, 6, 16)))


OTHER = KeySeed(b"o" * 32)


def sealing(content_of, seed, delta, *, triggers=None, **changes):
    """Describe a bundle with a delta; what triggers are read by is any bytes here, which nobody looks into."""
    files = {"trigger.statistics": b"statistics", **changes.pop("files", content_of(seed).files)}
    keys = (key_of(seed),) if triggers is None else triggers
    return content_of(seed, delta=delta, triggers=keys, files=files, **changes)


@pytest.fixture
def made(tmp_path, content_of, delta, seed, signing_key, key_file):
    """A bundle with a delta in a folder, that the triggers of two keys open."""
    content = sealing(content_of, seed, delta, triggers=(key_of(seed), key_of(OTHER)))
    manifest = write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=seed, sealer=key_file)
    return SimpleNamespace(path=tmp_path / "model", manifest=manifest, trusted=[signing_key.verifying_key])


def test_the_bundle_gives_its_delta_to_the_seed(made, delta, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        assert_same(bundle.delta(seed), delta)
        entry = bundle.manifest.delta
        assert (entry.entries, entry.keys) == (4, 2)
        assert entry.digest == "sha256:" + hashlib.sha256((made.path / "delta.sealed").read_bytes()).hexdigest()
        with pytest.raises(UnsealError, match="is not that of the bundle"):
            bundle.delta(KeySeed(b"x" * 32))


def test_the_triggers_of_all_keys_open_it_and_no_other(made, delta):
    found = open_bundle(made.path, trusted=made.trusted).sealed_delta()
    assert_same(found.open(secret_of_key(key_of(OTHER))), delta)
    assert not found.opens_with(secret_of_key(key_of(KeySeed(b"x" * 32))))


def test_the_model_is_the_same_with_and_without_a_delta(made, tmp_path, content, signing_key, seed):
    plain = write_bundle(tmp_path / "plain", content, signing_key=signing_key)
    assert plain.model_digest == made.manifest.model_digest
    assert plain.delta is None
    assert "delta.sealed" not in made.manifest.files
    with open_bundle(tmp_path / "plain", trusted=None) as bundle:
        assert bundle.delta(seed) is None
        assert bundle.sealed_delta() is None


def test_a_delta_that_is_moved_to_another_bundle_does_not_open(made, tmp_path, content_of, delta, seed, signing_key):
    other = sealing(content_of, seed, delta, files={**content_of(seed).files, "graphs/more": b"x"})
    write_bundle(tmp_path / "other", other, signing_key=signing_key)
    stolen = (made.path / "delta.sealed").read_bytes()
    with open_bundle(tmp_path / "other", trusted=None) as bundle:
        found = SealedDelta(stolen, model_digest=bundle.manifest.model_digest, issuer=bundle.issuer)
        assert not found.opens_with(secret_of_key(key_of(seed)))
    shutil.copy(made.path / "delta.sealed", tmp_path / "other")
    with pytest.raises(BundleTamperedError, match=r"delta\.sealed differs"):
        open_bundle(tmp_path / "other", trusted=None)


@pytest.mark.parametrize("where", [0, 60, -1])
def test_a_changed_byte_of_the_delta_names_the_file(made, where):
    content = bytearray((made.path / "delta.sealed").read_bytes())
    content[where] ^= 0x01
    (made.path / "delta.sealed").write_bytes(content)
    with pytest.raises(BundleTamperedError) as caught:
        open_bundle(made.path, trusted=made.trusted)
    assert caught.value.file == "delta.sealed"


def test_a_truncated_delta_is_named(made):
    content = (made.path / "delta.sealed").read_bytes()
    for length in (0, len(content) // 2, len(content) - 1):
        (made.path / "delta.sealed").write_bytes(content[:length])
        with pytest.raises(BundleTamperedError, match=r"delta\.sealed differs"):
            open_bundle(made.path, trusted=made.trusted)


def test_a_copy_without_the_delta_is_whole_and_says_what_it_lacks(made, tmp_path, seed):
    signing = EcdsaSigningKey.generate()
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        add_model_signature(bundle, signing)
    (made.path / "delta.sealed").unlink()
    with open_bundle(made.path, trusted=made.trusted) as copy:
        assert not copy.has_delta
        assert copy.sealed_delta() is None
        with pytest.raises(UnsealError, match=r"a copy without delta\.sealed"):
            copy.delta(seed)
        verify_model_signature(copy, signing.verifying_key)
        export_public(copy, tmp_path / "public.klb")
    with open_bundle(tmp_path / "public.klb", trusted=made.trusted) as again:
        assert (again.has_key, again.has_delta) == (False, False)
        verify_model_signature(again, signing.verifying_key)


def test_a_delta_added_to_a_plain_bundle_is_named(tmp_path, content, signing_key, made):
    write_bundle(tmp_path / "plain", content, signing_key=signing_key)
    shutil.copy(made.path / "delta.sealed", tmp_path / "plain")
    with pytest.raises(BundleTamperedError, match=r"delta\.sealed is not part of what was signed"):
        open_bundle(tmp_path / "plain", trusted=None)


def test_a_delta_that_changes_after_opening_is_named(made, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        (made.path / "delta.sealed").write_bytes(b"other")
        with pytest.raises(BundleTamperedError, match=r"delta\.sealed changed since"):
            bundle.delta(seed)


def test_the_public_copy_keeps_the_delta_and_loses_the_key(made, tmp_path, delta, seed):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        export_public(bundle, tmp_path / "public.klb")
    with open_bundle(tmp_path / "public.klb", trusted=made.trusted) as copy:
        assert not copy.has_key
        assert_same(copy.delta(seed), delta)
        assert_same(copy.sealed_delta().open(secret_of_key(key_of(OTHER))), delta)


def test_a_bundle_whose_key_is_sealed_anew_keeps_its_delta(made, delta, seed, signing_key, key_file):
    with open_bundle(made.path, trusted=made.trusted) as bundle:
        again = reseal(bundle, seed, key_file, signing_key=signing_key)
    assert again.has_key
    assert_same(again.delta(seed), delta)


def test_a_bundle_without_a_sealed_key_may_have_a_delta(tmp_path, content_of, delta, seed, signing_key):
    write_bundle(tmp_path / "model", sealing(content_of, seed, delta), signing_key=signing_key)
    with open_bundle(tmp_path / "model", trusted=None) as bundle:
        assert not bundle.has_key
        assert_same(bundle.delta(seed), delta)


@pytest.mark.parametrize("triggers", [(), (OTHER,)], ids=["none", "another's"])
def test_a_delta_that_the_bundles_own_trigger_would_not_open_is_not_written(
    triggers, tmp_path, content_of, delta, seed, signing_key
):
    content = sealing(content_of, seed, delta, triggers=tuple(key_of(one) for one in triggers))
    with pytest.raises(BundleError, match="would not open for the trigger of the bundle's own key"):
        write_bundle(tmp_path / "model", content, signing_key=signing_key)
    assert not (tmp_path / "model").exists()


def test_triggers_of_which_too_little_is_on_the_images_are_not_written(tmp_path, content_of, delta, seed, signing_key):
    large = key_of(seed, tile=17)
    content = sealing(content_of, seed, delta, triggers=(large,), key=KeyEntry.of(large))
    with pytest.raises(InputError, match="does not fit"):
        write_bundle(tmp_path / "model", content, signing_key=signing_key)
    assert not (tmp_path / "model").exists()


def test_a_delta_without_weights_to_add_it_to_is_not_written(tmp_path, content_of, content, delta, seed, signing_key):
    files = {name: source for name, source in content.files.items() if name != "weights.safetensors"}
    graphs = content.architecture.model_copy(update={"module": "graph_only"})
    lacking = sealing(content_of, seed, delta, files=files, architecture=graphs)
    with pytest.raises(BundleError, match=r"weights\.safetensors is needed"):
        write_bundle(tmp_path / "model", lacking, signing_key=signing_key)


def test_a_delta_without_what_triggers_are_read_by_is_not_written(tmp_path, content_of, delta, seed, signing_key):
    lacking = content_of(seed, delta=delta, triggers=(key_of(seed),))
    with pytest.raises(BundleError, match=r"trigger\.statistics is needed"):
        write_bundle(tmp_path / "model", lacking, signing_key=signing_key)


def test_changed_statistics_are_named(made):
    (made.path / "trigger.statistics").write_bytes(b"others")
    with pytest.raises(BundleTamperedError, match=r"trigger\.statistics differs"):
        open_bundle(made.path, trusted=made.trusted)


def test_the_files_name_is_reserved(tmp_path, content_of, content, seed, signing_key):
    files = dict(content.files) | {"delta.sealed": b"x"}
    with pytest.raises(BundleError, match=r"delta\.sealed is reserved"):
        write_bundle(tmp_path / "model", content_of(seed, files=files), signing_key=signing_key)
