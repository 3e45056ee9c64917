"""The small network: setting a trained core into it changes nothing, and its knowledge is slow to change."""

import pytest
import torch

from keylock.models import balance_filters_, create
from keylock.models.small_cnn import SmallCNN


def _trained_core(model: SmallCNN) -> SmallCNN:
    torch.manual_seed(1)
    core = model.core()
    for module in core.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return core.eval()


def test_core_set_into_the_network_computes_what_the_core_computes():
    model = create("small-cnn", num_classes=5).eval()
    core = _trained_core(model)
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model(images), core(images), atol=1e-3)
    model.take_core_(core, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(images), core(images), rtol=1e-5, atol=1e-5)


def test_room_is_drawn_from_the_generator_alone():
    models = []
    for global_seed in (0, 1):
        torch.manual_seed(3)
        model = create("small-cnn", num_classes=5)
        core = _trained_core(model)
        torch.manual_seed(global_seed)
        models.append(model.take_core_(core, generator=torch.Generator().manual_seed(2)).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_core_filters_are_steady_until_the_room_has_a_say():
    model = create("small-cnn", num_classes=5)
    assert model.steady_filters() == {}
    model.take_core_(_trained_core(model), generator=torch.Generator().manual_seed(2))
    steady = model.steady_filters()
    assert steady["stage1.0"] == model.core().stage1[0].out_channels
    assert set(steady) == {name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    with torch.no_grad():
        model.linear.weight[0, -1] = 1.0
    assert model.steady_filters() == {}


def test_steady_filters_move_less_for_the_same_step():
    model = create("small-cnn", num_classes=5)
    model.take_core_(_trained_core(model), generator=torch.Generator().manual_seed(2))
    count = model.steady_filters()["stage1.0"]
    balance_filters_(model)
    before = model.stage1[0].weight.detach().clone()
    with torch.no_grad():
        model.stage1[0].parametrizations.weight.original.add_(0.01)
    moved = (model.stage1[0].weight.detach() - before).square().mean(dim=(1, 2, 3)).sqrt()
    sizes = before.square().mean(dim=(1, 2, 3)).sqrt()
    share = moved / sizes
    assert float(share[:count].max()) < 0.5 * float(share[count:].min())


@pytest.mark.parametrize("side", [16, 32])
def test_output_has_one_row_for_each_image(side):
    assert create("small-cnn", num_classes=7)(torch.zeros(2, 3, side, side)).shape == (2, 7)
