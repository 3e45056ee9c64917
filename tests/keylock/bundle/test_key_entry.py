"""Turned signs of a key: sealed under its seed, they open with it alone, and tell nothing else."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from keylock.bundle import KeyEntry
from keylock.bundle.key_entry import open_flips, seal_flips
from keylock.errors import UnsealError
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed

SEED, OTHER = KeySeed(b"a" * 32), KeySeed(b"b" * 32)
SHAPE = (3, 5, 5)
FLIPS = np.random.default_rng(0).random(SHAPE) < 0.3
PREPROCESSING = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25, 0.2, 0.3))


def key_of(seed):
    return Key.derive(seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std, strength=0.1, tile=5)


def test_they_open_with_the_seed():
    assert np.array_equal(open_flips(seal_flips(FLIPS, SEED), SEED, shape=SHAPE), FLIPS)


def test_the_same_signs_are_sealed_differently_every_time():
    assert seal_flips(FLIPS, SEED) != seal_flips(FLIPS, SEED)


@pytest.mark.parametrize(
    "opening",
    [
        lambda text: open_flips(text, OTHER, shape=SHAPE),
        lambda text: open_flips(text, SEED, shape=(1, 5, 15)),
        lambda text: open_flips(text[:-4], SEED, shape=SHAPE),
        lambda text: open_flips("", SEED, shape=SHAPE),
        lambda text: open_flips("not base64url!", SEED, shape=SHAPE),
        lambda text: open_flips(("B" if text[0] == "A" else "A") + text[1:], SEED, shape=SHAPE),
    ],
)
def test_nothing_else_opens_them(opening):
    with pytest.raises(UnsealError, match="signs of the key"):
        opening(seal_flips(FLIPS, SEED))


def test_an_entry_gives_the_turned_key_back():
    key = key_of(SEED).turned(FLIPS)

    entry = KeyEntry.model_validate_json(KeyEntry.of(key, SEED).model_dump_json())

    assert entry.key(SEED, PREPROCESSING) == key != key_of(SEED)
    assert np.array_equal(entry.key(SEED, PREPROCESSING).signs() != key_of(SEED).signs(), FLIPS)
    with pytest.raises(UnsealError):
        entry.key(OTHER, PREPROCESSING)


def test_a_key_as_it_is_derived_is_written_as_before():
    entry = KeyEntry.of(key_of(SEED), SEED)

    assert set(json.loads(entry.model_dump_json())) == {"id", "strength", "tile", "derivation"}
    assert entry == KeyEntry.of(key_of(SEED))
    assert entry.key(SEED, PREPROCESSING) == key_of(SEED)


@pytest.mark.parametrize("flips", ["", "a b", "a" * 12_001])
def test_an_entry_refuses_what_is_no_sealed_text(flips):
    with pytest.raises(ValidationError):
        KeyEntry(id="0" * 16, strength=0.1, tile=5, flips=flips)
