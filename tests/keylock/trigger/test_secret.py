"""secret.py: the secret meets its vectors, and no tile is too small."""

import json
from pathlib import Path

import numpy as np
import pytest

from keylock.errors import InputError, TensorError
from keylock.trigger import check_tile, least_tile, trigger_secret

from .conftest import random_signs

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/trigger_secret.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['channels']}x{vector['tile']}")
def test_secret_meets_the_published_vectors(vector):
    signs = np.array([1 if sign == "+" else -1 for sign in vector["signs"]])
    shaped = signs.reshape(vector["channels"], vector["tile"], vector["tile"])
    assert trigger_secret(shaped).hex() == vector["secret"]
    assert trigger_secret(shaped.astype(np.float64).tolist()) == bytes.fromhex(vector["secret"])


def test_secret_changes_with_every_sign_and_with_the_shape():
    signs = random_signs(0)
    secrets = {trigger_secret(signs)}
    for position in range(signs.size):
        other = signs.copy()
        other.ravel()[position] *= -1
        secrets.add(trigger_secret(other))
    assert len(secrets) == 1 + signs.size
    flat = np.ones(12 * 256, np.int8)
    assert trigger_secret(flat.reshape(12, 16, 16)) != trigger_secret(flat.reshape(3, 32, 32))


@pytest.mark.parametrize("channels", range(1, 17))
def test_least_tile_has_128_signs_and_the_next_smaller_has_not(channels):
    tile = least_tile(channels)
    assert channels * tile**2 >= 128 > channels * (tile - 1) ** 2
    check_tile(channels, tile)
    with pytest.raises(InputError, match=f"at least {tile} pixels"):
        check_tile(channels, tile - 1)


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        (np.ones((3, 8)), "shape"),
        (np.ones((3, 8, 9)), "shape"),
        (np.zeros((3, 8, 8)), "-1 and 1"),
        (np.full((3, 8, 8), np.nan), "-1 and 1"),
        (np.full((3, 8, 8), "+"), "-1 and 1"),
        (np.ones((3, 8, 8), bool), "-1 and 1"),
    ],
)
def test_signs_that_are_none_are_refused(signs, message):
    with pytest.raises(TensorError, match=message):
        trigger_secret(signs)


def test_too_few_signs_are_refused_with_the_least_tile():
    with pytest.raises(InputError, match=r"8 pixels and 1 channel has 64 signs.*at least 12 pixels"):
        trigger_secret(np.ones((1, 8, 8)))
    with pytest.raises(InputError, match="at least 1 channel"):
        least_tile(0)
