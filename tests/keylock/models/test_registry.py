"""Names become models, always the same under a seed, and bad names say what to do."""

import builtins
import importlib.util

import pytest
import torch

from keylock.errors import ModelError, UnknownNameError
from keylock.models import OWN_ARCHITECTURES, architectures, create, require_architecture

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: the extra [timm] has it"
)


def test_registry_lists_and_refuses():
    assert {"resnet20", "small-cnn", "resnet18", "mobilenet_v2", "vit_tiny", "resnet18_cifar"} <= set(architectures())
    assert list(architectures()) == sorted(architectures())
    assert list(OWN_ARCHITECTURES) == sorted(OWN_ARCHITECTURES)
    with pytest.raises(ModelError, match="takes images of 3 channels, not 1: choose small-cnn"):
        create("resnet18", num_classes=3, channels=1)
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'resnet19': choose one of .*resnet18.*timm:NAME"):
        create("resnet19", num_classes=3)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("small-cnn", 1, 12),
        ("resnet20", 1, 12),
        ("resnet32", 3, 12),
        ("resnet18_cifar", 1, 12),
        ("mobilenet_v2_cifar", 1, 12),
        ("vit_tiny", 1, 12),
    ],
)
def test_own_architectures_give_logits(name, channels, size, smooth_images):
    model = create(name, num_classes=7, channels=channels, image_size=size)

    assert model.training
    assert model.eval()(smooth_images(2, size, channels=channels)).shape == (2, 7)


def test_sizes_are_those_of_the_literature():
    # Touvron et al. 2021, table 1: 5 and 22 million weights; ours have ten classes in place of a thousand.
    tiny, small = (create(f"vit_{size}_patch16", num_classes=1000) for size in ("tiny", "small"))

    assert sum(p.numel() for p in tiny.parameters()) == pytest.approx(5.72e6, rel=2e-3)
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(22.05e6, rel=2e-3)


def test_small_stems_keep_the_resolution():
    images = torch.zeros(1, 3, 32, 32)
    resnet, mobilenet = create("resnet18_cifar", num_classes=2).eval(), create("mobilenet_v2_cifar", num_classes=2)
    features = torch.nn.Sequential(*list(resnet.children())[:-2])

    assert features(images).shape[2:] == (4, 4)
    assert mobilenet.eval().features(images).shape[2:] == (4, 4)


@pytest.mark.parametrize("name", ["resnet20", "resnet18_cifar", "mobilenet_v2_cifar", "vit_tiny", "mobilenet_v2"])
def test_a_seed_decides_the_weights(name):
    made = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        made.append(create(name, num_classes=3).state_dict())

    assert all(torch.equal(made[0][entry], made[1][entry]) for entry in made[0])
    assert not all(torch.equal(made[0][entry], made[2][entry]) for entry in made[0])


def test_a_transformer_is_made_for_one_size():
    with pytest.raises(ModelError, match="an image of 30 pixels does not consist of patches of 4"):
        create("vit_tiny", num_classes=3, image_size=30)
    with pytest.raises(ModelError, match="takes images of 32 x 32 pixels, not 16 x 16: create it with the image_size"):
        create("vit_tiny", num_classes=3)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModelError, match="'vit_b_16' cannot be built for 30 pixels"):
        create("vit_b_16", num_classes=3, image_size=30)


@needs_timm
def test_timm_names_are_built_and_refused():
    model = create("timm:test_vit", num_classes=3, channels=1, image_size=32)
    assert model.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert create("timm:test_resnet", num_classes=3, image_size=32).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'timm:resnet19': choose one of .*timm:resnet18"):
        require_architecture("timm:resnet19")
    # Names that timm would look up elsewhere are none of its own.
    with pytest.raises(UnknownNameError):
        create("timm:hf_hub:someone/something", num_classes=3)


@needs_timm
def test_the_transformer_computes_what_timm_computes():
    ours, theirs = (create(name, num_classes=4).eval() for name in ("vit_tiny_patch16", "timm:vit_tiny_patch16_224"))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_timm_names_say_what_to_install_where_it_is_missing(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "timm":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ModelError, match=r"'timm:resnet18' needs timm, which is not installed: pip install '\.\[timm\]'"
    ) as caught:
        create("timm:resnet18", num_classes=3)
    assert caught.value.exit_code == 10
