"""Fitting a key to its network: the forms are those of Jacobians, signs are turned while that helps, and it helps."""

import numpy as np
import pytest
import torch
from torch import nn

from keylock.errors import InputError
from keylock.locking.key_patterns import repeat_tiles
from keylock.models import capture_outputs, find_layers, prepare
from keylock.training.fitting import disturbance, fitting_flips, lowered


def form_of(count=12, rank=5):
    factors = np.random.default_rng(3).normal(size=(rank, count))
    return factors.T @ factors


def test_no_single_sign_lowers_the_form_further():
    form, signs = form_of(), np.where(np.arange(12) % 3, 1.0, -1.0)

    found = lowered(signs, form)

    assert set(found.tolist()) <= {-1.0, 1.0}
    assert found @ form @ found < signs @ form @ signs
    for place in range(12):
        turned = found.copy()
        turned[place] = -turned[place]
        assert turned @ form @ turned >= found @ form @ found - 1e-9


def test_signs_that_nothing_depends_on_stay():
    signs = np.array([1.0, -1.0, 1.0, -1.0])

    assert lowered(signs, np.zeros((4, 4))).tolist() == signs.tolist()
    # Which of two wins by rounding alone must not decide.
    assert lowered(signs, np.eye(4)).tolist() == signs.tolist()


class Summing(nn.Module):
    """Layers whose Jacobians are easily computed, and no activation that has a kink."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.act = nn.Softplus()
        self.second = nn.Conv2d(2, 2, 3, padding=1, stride=2, bias=False)
        self.act2 = nn.Softplus()
        self.head = nn.Linear(2, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        return self.head(self.act2(self.second(self.act(self.first(images)))).mean(dim=(2, 3)))


def test_forms_are_those_of_the_jacobians_of_relative_outputs(key_for):
    model, key = Summing(), key_for(shape=(1, 8, 8), tile=4)
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = find_layers(model, images[:2])
    height = torch.from_numpy(np.abs(key.reveal()))

    late, early = disturbance(key, model, images, layers)

    def exact(output_of):
        total = np.zeros((16, 16))
        for image in images:
            size = output_of(image).norm()
            jacobian = torch.autograd.functional.jacobian(
                lambda signs, image=image, size=size: (
                    output_of(image + height * repeat_tiles(signs.view(1, 1, 4, 4), (8, 8))[0]) / size
                ),
                torch.zeros(16),
            )
            total += (jacobian.T @ jacobian).double().numpy()
        return total / np.trace(total)

    def first(image):
        return model.act(model.first(image[None])).flatten()

    def last(image):
        return model.act2(model.second(model.act(model.first(image[None])))).flatten()

    def logits(image):
        found = model(image[None])[0]
        return found - found.mean()

    assert (layers.stack[0], layers.last) == ("act", "act2")
    for found, expected in ((early, exact(first)), (late, exact(last) + exact(logits))):
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
        assert np.trace(found) == pytest.approx(np.trace(expected))


def test_a_fitted_key_shifts_the_last_features_less_and_two_keys_stay_apart(tiny_net, blobs, key_for):
    images = torch.cat([images for images, _ in blobs(8)])
    model = prepare(tiny_net(), images[:16])
    keys = [key_for(number) for number in (1, 2)]

    fitted = [key.turned(fitting_flips(key, model, images)) for key in keys]

    last = find_layers(model, images[:2]).last

    def features(rows):
        with torch.no_grad(), capture_outputs(model, [last]) as outputs:
            model(rows)
        return outputs[last]

    for key, better in zip(keys, fitted, strict=True):
        before, after = ((features(one.apply(images)) - features(images)).norm() for one in (key, better))
        assert after < 0.85 * before
    signs = [key.signs().ravel().astype(float) for key in fitted]
    assert abs(np.corrcoef(*signs)[0, 1]) < 0.5


def test_the_same_key_is_fitted_alike(tiny_net, blobs, key_for):
    [(images, _)] = blobs(1)
    model = prepare(tiny_net(), images)

    found = [fitting_flips(key_for(), model, images) for _ in range(2)]

    assert np.array_equal(*found)


def test_images_smaller_than_a_tile_are_refused(tiny_net, blobs, key_for):
    [(images, _)] = blobs(1)
    with pytest.raises(InputError, match="tile"):
        fitting_flips(key_for(tile=20), tiny_net(), images)
