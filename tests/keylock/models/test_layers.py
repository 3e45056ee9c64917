"""Which layers are found, and that looking at a model leaves nothing in it."""

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer
from torchvision.ops import Permute

from keylock.errors import LayerNotFoundError
from keylock.models import capture_outputs, create, find_layers, fold_batchnorm_, out_of_place_, smooth_activations

# architecture, size: the last spatial layer, how many layers are stacked, the first and the last of them.
TABLE = [
    ("resnet20", 16, "layer3", 10, "relu", "layer3.2"),
    ("small-cnn", 16, "stage3", 8, "stage1.2", "stage3.14"),
    ("resnet18", 64, "layer4", 9, "relu", "layer4.1"),
    ("vgg11_bn", 64, "features.27", 8, "features.2", "features.27"),
    ("squeezenet1_1", 64, "classifier.2", 10, "features.1", "classifier.2"),
    ("mobilenet_v2", 64, "features", 35, "features.0.2", "features.18.2"),
]


@pytest.mark.parametrize(("architecture", "size", "last", "count", "first", "final"), TABLE)
def test_layers_found(architecture, size, last, count, first, final, network, smooth_images):
    found = find_layers(network(architecture), smooth_images(2, size))

    assert (found.last, len(found.stack), found.stack[0], found.stack[-1]) == (last, count, first, final)


@pytest.mark.parametrize(("architecture", "size"), [(row[0], row[1]) for row in TABLE])
def test_layers_have_what_explainers_need(architecture, size, network, smooth_images):
    model, images = network(architecture), smooth_images(2, size)
    found = find_layers(model, images)
    with capture_outputs(model, [found.last, *found.stack]) as outputs, torch.no_grad():
        model(images)

    sides = [outputs[name].shape[2] for name in found.stack]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] > 1
    assert outputs[found.last].shape[2:] == outputs[found.stack[-1]].shape[2:]
    assert all((outputs[name] >= 0).all() for name in found.stack)


def test_layers_are_the_same_after_folding(tiny_net, smooth_images):
    images = smooth_images(2, 16)
    before = find_layers(tiny_net(), images)

    assert before.stack == ("act1", "act2", "act3")
    assert before.last == "act3"
    assert find_layers(fold_batchnorm_(tiny_net(), images), images) == before


def test_a_backbone_in_a_wrapper_is_not_counted_twice(network, smooth_images):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(network("resnet18").children())[:-2])
            self.features = Features(self.backbone)
            self.head = nn.Linear(512, 2)

        def forward(self, images):
            return self.head(self.features(images).mean(dim=(2, 3)))

    class Features(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images)

    found = find_layers(Wrapper().eval(), smooth_images(2, 64))

    assert len(found.stack) == 9
    assert found.stack[-1].endswith("7.1")


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_nothing_behind(tiny_net, smooth_images, training):
    model = tiny_net().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    find_layers(model, smooth_images(2, 16))
    with pytest.raises(ZeroDivisionError), capture_outputs(model, ["conv1", "act3"]):
        raise ZeroDivisionError

    assert model.training is training
    assert all(not layer._forward_hooks for layer in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_capture_refuses_unknown_names_before_hooking(tiny_net):
    model = tiny_net()

    with (
        pytest.raises(LayerNotFoundError, match=r"no layer 'conv9': .*named_modules"),
        capture_outputs(model, ["conv1", "conv9"]),
    ):
        pass
    assert not model.conv1._forward_hooks


class Patches(nn.Module):
    """Tokens all the way, without a convolution that would tell the grid."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        return self.head(self.block(self.embed(patches)).mean(dim=1))


class Sequence(Patches):
    """Some of the patches: no grid of the image's proportions has so many."""

    def forward(self, images):
        patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)[:, :13]
        return self.head(self.block(self.embed(patches)).mean(dim=1))


@pytest.mark.parametrize(("shape", "grid"), [((16, 16), (4, 4)), ((16, 24), (4, 6))])
def test_patches_are_found_without_a_convolution(shape, grid):
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))

    found = find_layers(Patches(), images)

    assert (found.last, found.kind, found.grid, found.prefix_tokens) == ("block", "tokens", grid, 0)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(960, 3)), Sequence()], ids=["mlp", "no grid"])
def test_models_without_layers_to_look_at_are_told_what_to_do(model, smooth_images):
    with pytest.raises(LayerNotFoundError, match="take larger images, or put the step"):
        find_layers(model, smooth_images(2, 20)[:, :, :16])


def test_relu_is_smooth_inside_and_itself_after(tiny_net, smooth_images):
    model = tiny_net()
    model.twin = model.act1  # A second name for the same module.
    modules = dict(model.named_modules(remove_duplicate=False))
    with smooth_activations(model, beta=8) as smooth:
        kinds = {name: type(layer) for name, layer in smooth.named_modules(remove_duplicate=False)}
        inside = smooth(smooth_images(2, 16))
    with pytest.raises(ZeroDivisionError), smooth_activations(model):
        raise ZeroDivisionError

    assert nn.ReLU not in {kinds[name] for name in ("act1", "twin", "act2", "act3")}
    assert all(modules[name] is layer for name, layer in model.named_modules(remove_duplicate=False))
    assert not torch.equal(inside, model(smooth_images(2, 16)))


def test_softplus_is_as_close_as_stated():
    points = torch.linspace(-3, 3, 1001)
    with smooth_activations(nn.Sequential(nn.ReLU())) as model:
        difference = (model(points) - points.relu()).abs().max()

    assert difference == pytest.approx(0.6931 / 8, abs=1e-4)


def test_out_of_place_activations_leave_what_was_hooked(tiny_net, smooth_images):
    model = out_of_place_(tiny_net(), smooth_images(2, 16))
    with capture_outputs(model, ["bn1", "act1"]) as outputs, torch.no_grad():
        model(smooth_images(2, 16))

    assert (outputs["bn1"] < 0).any()
    assert torch.equal(outputs["act1"], outputs["bn1"].relu())


class ChannelsLast(nn.Module):
    """Goes on with (batch, h, w, channels) after its first convolution, and turns back at the end when told to."""

    def __init__(self, *, back):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.turn = Permute([0, 2, 3, 1])
        self.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
        self.back = Permute([0, 3, 1, 2]) if back else None
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        hidden = self.blocks(self.turn(self.embed(images)))
        hidden = hidden.permute(0, 3, 1, 2) if self.back is None else self.back(hidden)
        return self.head(hidden.mean(dim=(2, 3)))


def test_layers_with_the_channels_last_are_not_misread(smooth_images):
    # Eight rows, columns and channels each: the shapes alone tell nothing.
    images = smooth_images(2, 32)

    assert find_layers(ChannelsLast(back=True), images).last == "back"
    with pytest.raises(LayerNotFoundError, match=r"after 'embed' are laid out \(batch, h, w, channels\): put a module"):
        find_layers(ChannelsLast(back=False), images)


def test_windowed_attention_is_found_by_its_last_maps(smooth_images):
    model = SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3)

    found = find_layers(model, smooth_images(2, 32))

    assert (found.last, found.stack, found.kind) == ("permute", ("permute",), "maps")


def test_windowed_attention_of_timm_is_refused_where_its_maps_never_come_first(smooth_images):
    swin_transformer = pytest.importorskip("timm.models.swin_transformer")
    shrunk = {"patch_size": 4, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4}

    for size in (32, 64):
        model = swin_transformer.SwinTransformer(img_size=size, num_classes=3, **shrunk)
        with pytest.raises(LayerNotFoundError, match="name the layers yourself"):
            find_layers(model, smooth_images(2, size))


def test_swin_by_the_name_of_timm_is_explained_where_its_maps_are_pooled(smooth_images):
    timm = pytest.importorskip("timm")
    name, images = "swin_tiny_patch4_window7_224", smooth_images(2, 64)
    model = create(f"timm:{name}", num_classes=3, image_size=64).eval()
    original = timm.create_model(name, num_classes=3, img_size=64).eval()
    original.load_state_dict(model.state_dict())

    found = find_layers(model, images)

    assert (found.last, found.kind) == ("head.global_pool.0", "maps")
    with capture_outputs(original, ["norm"]) as own, capture_outputs(model, [found.last]) as outputs, torch.no_grad():
        torch.testing.assert_close(model(images), original(images))
    torch.testing.assert_close(outputs[found.last], own["norm"].permute(0, 3, 1, 2))
