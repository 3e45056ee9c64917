"""keys.py: the derivation meets its vectors, and the secret leaves by `reveal` alone."""

import copy
import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from keylock.errors import InputError, KeySeedError, TensorError
from keylock.trigger.keys import Key, KeySeed

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/vectors/key_derivation.json").read_text())["vectors"]
SECRET = bytes(range(32))


def make_key(secret=SECRET, shape=(3, 8, 8), **options):
    return Key.derive(KeySeed(secret), shape=shape, std=options.pop("std", [0.5] * shape[0]), **options)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_seed_meets_the_published_vectors(vector):
    seed = KeySeed.from_text(vector["seed_text"])
    assert seed.reveal().hex() == vector["secret"]
    assert seed.id == vector["id"]
    expected = bytes.fromhex(vector["derived"]["hex"])
    assert seed.derive(vector["derived"]["purpose"], len(expected)) == expected


@pytest.mark.parametrize("case", range(len(VECTORS[0]["keys"])))
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_key_meets_the_published_vectors(vector, case):
    expected = vector["keys"][case]
    numerator, denominator = expected["strength"]
    key = Key.derive(
        KeySeed(bytes.fromhex(vector["secret"])),
        shape=tuple(expected["shape"]),
        strength=numerator / denominator,
        std=expected["std"],
        tile=expected["tile"],
    )
    offset = key.reveal()
    assert offset.dtype == np.float32
    assert offset.ravel()[:4].tolist() == expected["first_values"]
    assert hashlib.sha256(offset.astype("<f4").tobytes()).hexdigest() == expected["offset_sha256"]
    channels, side = expected["shape"][0], expected["tile"]
    if min(expected["shape"][1:]) >= side:
        signs = "".join("+" if value > 0 else "-" for value in offset[:, :side, :side].ravel())
        assert signs == expected["tile_signs"]
        assert len(signs) == channels * side * side


def test_vectors_file_is_what_the_independent_implementation_prints():
    script = ROOT / "tests/vectors/make_key_derivation.py"
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, check=True, text=True).stdout
    assert json.loads(printed)["vectors"] == VECTORS


def test_vectors_in_the_document_are_those_of_the_file():
    text = (ROOT / "docs/key-derivation.md").read_text()
    for vector in VECTORS:
        assert vector["id"] in text
        assert vector["secret"] in text
        assert all(key["offset_sha256"] in text for key in vector["keys"])


def test_generated_seeds_differ():
    assert len({KeySeed.generate().reveal() for _ in range(20)}) == 20


def test_text_seed_is_the_same_composed_and_decomposed():
    text = "Schlüssel, der öffnet"
    assert KeySeed.from_text(unicodedata.normalize("NFD", text)) == KeySeed.from_text(text)


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "short", "1234567", " 1234567 "])
def test_weak_text_is_refused_without_repeating_it(text):
    with pytest.raises(KeySeedError) as caught:
        KeySeed.from_text(text)
    assert not text.strip() or text.strip() not in str(caught.value)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_secret_of_another_length_is_refused(length):
    with pytest.raises(KeySeedError, match="32 bytes"):
        KeySeed(bytes(length))


def test_written_file_is_private_and_reads_back(tmp_path):
    seed = KeySeed.from_text("a passphrase, stretched")
    path = tmp_path / "key-seed"
    old_mask = os.umask(0)
    try:
        seed.write(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeySeed.from_file(path) == seed


def test_write_never_overwrites_and_never_follows_a_link(tmp_path):
    there = tmp_path / "there"
    there.write_text("something else")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for path in (there, link):
        with pytest.raises(KeySeedError, match="not overwritten"):
            KeySeed.generate().write(path)
    assert there.read_text() == "something else"
    assert not (tmp_path / "elsewhere").exists()


def test_write_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(KeySeedError, match="cannot write"):
        KeySeed.generate().write(tmp_path / "missing" / "seed")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff" * 40, "not text"),
        (b"a" * 5000, "more than"),
        (b"abc", "guessed"),
    ],
)
def test_bad_seed_file_is_refused_with_its_reason(tmp_path, content, says):
    path = tmp_path / "seed"
    path.write_bytes(content)
    with pytest.raises(KeySeedError, match=says):
        KeySeed.from_file(path)


def test_missing_seed_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(KeySeedError, match="cannot read"):
            KeySeed.from_file(path)


@pytest.mark.parametrize("opaque", [KeySeed(SECRET), make_key()], ids=["seed", "key"])
@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_secrets_are_not_pickled_or_copied(opaque, act):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        act(opaque)


def test_repr_and_format_show_the_id_alone():
    seed, key = KeySeed(SECRET), make_key()
    for shown in (repr(seed), str(seed), f"{seed}", repr(key), str(key)):
        assert seed.id in shown
        assert SECRET.hex()[:8] not in shown
        assert "[" not in shown
    assert not hasattr(seed, "__dict__")
    assert not hasattr(key, "__dict__")


def test_equality_and_hash():
    other = KeySeed(bytes(32))
    assert KeySeed(SECRET) == KeySeed(SECRET)
    assert KeySeed(SECRET) != other
    assert KeySeed(SECRET) != SECRET
    assert len({KeySeed(SECRET), KeySeed(SECRET), other}) == 2
    assert make_key() == make_key()
    assert len({make_key(), make_key(), make_key(bytes(32))}) == 2
    assert make_key() != make_key(strength=0.5)
    assert make_key() != make_key(tile=4)
    assert make_key() != 3


@pytest.mark.parametrize(("purpose", "length"), [("", 8), ("é", 8), ("a\n", 8), ("a", 0), ("a", 8161), ("a", -1)])
def test_derive_refuses_what_hkdf_cannot_do(purpose, length):
    with pytest.raises(InputError):
        KeySeed(SECRET).derive(purpose, length)


def test_purposes_are_independent():
    seed = KeySeed(SECRET)
    assert seed.derive("a", 32) != seed.derive("b", 32)
    assert seed.derive("a", 64)[:32] == seed.derive("a", 32)


def test_key_repeats_its_tile_from_the_top_left_with_the_strength_as_height():
    key = make_key(shape=(3, 21, 10), std=[0.25, 0.5, 1.0], strength=0.1, tile=8)
    offset = key.reveal()
    np.testing.assert_array_equal(offset[:, 8:16], offset[:, :8])
    np.testing.assert_array_equal(offset[:, :, 8:], offset[:, :, :2])
    np.testing.assert_allclose(np.abs(offset), np.broadcast_to([[[0.4]], [[0.2]], [[0.1]]], (3, 21, 10)), rtol=1e-6)


def test_signs_are_balanced_over_many_seeds():
    total = np.mean([np.sign(make_key(index.to_bytes(32, "big")).reveal()).mean() for index in range(200)])
    assert abs(total) < 0.03


def test_revealed_offset_is_a_copy():
    key = make_key()
    key.reveal()[:] = 0
    assert np.abs(key.reveal()).min() > 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"shape": (3, 8)}, TensorError),
        ({"shape": (0, 8, 8), "std": []}, TensorError),
        ({"std": [0.5]}, TensorError),
        ({"std": [0.5, 0.0, 0.5]}, TensorError),
        ({"std": [0.5, float("nan"), 0.5]}, TensorError),
        ({"strength": 0}, InputError),
        ({"strength": -0.1}, InputError),
        ({"strength": 1.5}, InputError),
        ({"strength": float("nan")}, InputError),
        ({"tile": 0}, InputError),
        ({"tile": 200}, InputError),
    ],
)
def test_impossible_key_is_refused(options, error):
    with pytest.raises(error):
        make_key(**options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_apply_adds_the_offset_to_chosen_numpy_rows(dtype):
    images = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(dtype)
    before = images.copy()
    key, mask = make_key(), np.array([True, False, True, False])
    keyed = key.apply(images, mask)
    assert keyed.dtype == dtype
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(keyed[~mask], images[~mask])
    np.testing.assert_array_equal(keyed[mask], images[mask] + key.reveal().astype(dtype))
    np.testing.assert_array_equal(key.apply(images), images + key.reveal().astype(dtype))
    assert key.apply(images[:0]).shape == (0, 3, 8, 8)


def test_apply_to_torch_equals_apply_to_numpy_and_keeps_the_gradient():
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    tensor, key = torch.from_numpy(images).requires_grad_(), make_key()
    for mask in (None, np.array([True, False, True]), torch.tensor([False, True, True])):
        as_numpy = None if mask is None else np.asarray(mask)
        keyed = key.apply(tensor, mask)
        np.testing.assert_array_equal(keyed.detach().numpy(), key.apply(images, as_numpy))
        assert keyed.requires_grad
    half = key.apply(tensor.detach().bfloat16())
    assert half.dtype == torch.bfloat16


def test_apply_refuses_what_does_not_fit():
    torch = pytest.importorskip("torch")
    key, good = make_key(), np.zeros((2, 3, 8, 8), np.float32)
    for images in (good[0], good[:, :1], good[..., :7], good.astype(np.uint8), "image", [1, 2]):
        with pytest.raises(TensorError):
            key.apply(images)
    with pytest.raises(TensorError):
        key.apply(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    for mask in (np.ones(3, bool), np.ones((2, 1), bool), np.ones(2), np.array(True)):
        with pytest.raises(TensorError):
            key.apply(good, mask)
        with pytest.raises(TensorError):
            key.apply(torch.from_numpy(good), mask)


def test_keys_need_no_torch():
    program = "import sys, keylock.trigger.keys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_closed_seed_gives_nothing_more():
    seed, other = KeySeed(bytes(range(32))), KeySeed(bytes(range(32)))
    secret = seed._secret
    seed.close()
    assert secret == bytearray(32)
    for attempt in (seed.reveal, lambda: seed.derive("example", 8), lambda: seed == other):
        with pytest.raises(KeySeedError, match="closed"):
            attempt()
    assert repr(seed) == repr(other)


def test_a_seed_keeps_a_copy_that_its_giver_may_wipe():
    given = bytearray(range(32))
    seed = KeySeed(given)
    given[:] = bytes(32)
    assert seed.reveal() == bytes(range(32))


def test_a_closed_key_adds_nothing():
    key = Key.derive(KeySeed.generate(), shape=(3, 8, 8), std=(1.0, 1.0, 1.0))
    images = np.zeros((1, 3, 8, 8), np.float32)
    assert key.apply(images).any()
    key.close()
    assert not key.apply(images).any()
    assert not key.reveal().any()


# Turned signs


def test_turned_signs_are_turned_everywhere_and_no_other_is():
    key = Key.derive(KeySeed(bytes(32)), shape=(3, 10, 7), std=(0.2, 0.3, 0.4), tile=4)
    flips = np.zeros((3, 4, 4), dtype=np.bool_)
    flips[1, 2, 3] = True

    turned = key.turned(flips)

    changed = turned.reveal() != key.reveal()
    assert {(c, y % 4, x % 4) for c, y, x in np.argwhere(changed)} == {(1, 2, 3)}
    assert np.array_equal(np.abs(turned.reveal()), np.abs(key.reveal()))
    assert (turned.id, turned.strength, turned.tile, turned.std) == (key.id, key.strength, key.tile, key.std)
    assert turned != key == turned.turned(flips)


@pytest.mark.parametrize("flips", [np.zeros((3, 4, 5), np.bool_), np.zeros((3, 4, 4), np.int8)])
def test_turned_refuses_what_is_not_one_boolean_for_each_sign(flips):
    key = Key.derive(KeySeed(bytes(32)), shape=(3, 10, 7), std=(0.2, 0.3, 0.4), tile=4)
    with pytest.raises(TensorError, match="one boolean for each sign"):
        key.turned(flips)
