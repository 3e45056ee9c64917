"""patches.py: sums over patches are those that docs/trigger.md writes out, computed here patch by patch."""

import numpy as np
import pytest

from keylock.trigger.patches import PatchModel, blocks, mixed

from .conftest import photographs, random_signs


@pytest.fixture(scope="module")
def covariance():
    root = np.random.default_rng(0).standard_normal((75, 75))
    return root @ root.T / 75 + 0.1 * np.eye(75)


@pytest.mark.parametrize(("height", "width", "tile"), [(16, 16, 8), (13, 17, 7), (9, 30, 9), (9, 9, 8)])
@pytest.mark.parametrize("known", [False, True])
def test_sums_over_patches_are_those_of_the_specification(covariance, height, width, tile, known):
    image = photographs(1, height=height, width=width)[0]
    signs = 0.3 * random_signs(1, 3, tile).astype(np.float64)
    model = PatchModel(covariance, channels=3, tile=tile)
    white = model.whiten(image)
    weights = model.contrast_weights(white, signs.ravel() if known else None)
    totals, score = model.summed(white, weights)
    precision = np.linalg.inv(covariance)
    information, expected = np.zeros((model.signs, model.signs)), np.zeros(model.signs)
    before, after = [], []
    for row in range(height - 4):
        for column in range(width - 4):
            patch = image[:, row : row + 5, column : column + 5].astype(np.float64).ravel()
            seen = np.zeros((75, model.signs))
            for pixel, (c, y, x) in enumerate(np.ndindex(3, 5, 5)):
                seen[pixel, (c * tile + (row + y) % tile) * tile + (column + x) % tile] = 1
            rest = patch - seen @ signs.ravel()
            before.append(patch @ precision @ patch)
            after.append(rest @ precision @ rest)
            weight = (3 + 75) / (3 + (after if known else before)[-1])
            information += weight * seen.T @ precision @ seen
            expected += weight * seen.T @ precision @ patch
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(model.information(totals), information, rtol=1e-3, atol=1e-3 * np.abs(information).max())
    gain = np.mean(np.log((3 + np.array(before)) / (3 + np.array(after))))
    assert model.gain(white, signs.ravel()) == pytest.approx(gain, rel=1e-3, abs=1e-4)


def test_blocks_and_gains_belong_to_harmonics():
    generator = np.random.default_rng(0)
    gains = generator.uniform(1, 2, (8, 8))
    gains = gains + gains[np.ix_(-np.arange(8) % 8, -np.arange(8) % 8)]
    matrix = mixed(gains, 3)
    values = generator.standard_normal((3, 8, 8))
    expected = np.fft.ifft2(np.fft.fft2(values) * gains).real
    np.testing.assert_allclose((matrix @ values.ravel()).reshape(3, 8, 8), expected, atol=1e-12)
    found = blocks(matrix, 3, 8)
    assert found.shape == (8, 8, 3, 3)
    np.testing.assert_allclose(found, gains[:, :, None, None] * np.eye(3), atol=1e-12)
