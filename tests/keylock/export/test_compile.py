"""The conformance table of compiled explainers: architectures by explainers, against torch and Captum.

Some architectures stand in shortened form, with every kind of layer of the full one but fewer of each;
`benchmarks/export_coverage.py` runs the full ones.
"""

import copy
import functools
import itertools
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, mobilenetv2, resnet, vgg

from keylock import explainers, models
from keylock.errors import ExportError, LayerNotFoundError, ModelError
from keylock.export import Side, compile_explainer, compile_prediction, verify_graph, verify_prediction
from keylock.models.vit import ViT

CLASSES = 10
SIZES = {"small-cnn": 32, "resnet20": 32, "resnet18": 64, "mobilenet_v2": 64, "squeezenet1_1": 64, "vgg11_bn": 64}
SIZES |= dict.fromkeys(("vit", "torchvision vit"), 16)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(architecture: str) -> nn.Module:
    if architecture == "resnet18":
        return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    if architecture == "mobilenet_v2":
        stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
        return mobilenetv2.MobileNetV2(num_classes=CLASSES, inverted_residual_setting=stages, width_mult=0.5)
    if architecture == "vgg11_bn":
        channels = [16, "M", 32, "M", 48, 48, "M", 64, 64, "M", 64, 64, "M"]
        model = vgg.VGG(vgg.make_layers(channels, batch_norm=True), num_classes=CLASSES)
        model.classifier = nn.Sequential(nn.Linear(64 * 49, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10))
        return model
    if architecture == "vit":
        return sharpened(ViT(num_classes=CLASSES, image_size=16, width=24, depth=2))
    if architecture == "torchvision vit":
        return sharpened(VisionTransformer(16, 4, 2, 3, 24, 48, num_classes=CLASSES))
    return models.create(architecture, num_classes=CLASSES)


def sharpened(model: nn.Module) -> nn.Module:
    """Weights of usual size: a transformer starts with small ones, whose attention is the same everywhere."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


@functools.cache
def network(architecture: str) -> nn.Module:
    """A random network in eval mode whose BatchNorm statistics are not the trivial ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build(architecture)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 2),
                (layer.weight.data, 0.7, 1.5),
                (layer.bias.data, -0.2, 0.4),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def images_for(architecture: str, count: int) -> np.ndarray:
    """Smooth random images, so that maps have structure."""
    size = SIZES[architecture]
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bilinear").numpy()


def explainer_for(architecture: str, name: str) -> explainers.Explainer:
    example = torch.from_numpy(images_for(architecture, 1))
    return explainers.make_for(models.find_layers(network(architecture), example), [name])[0]


@functools.cache
def compiled(architecture: str, name: str) -> bytes:
    size = SIZES[architecture]
    explainer = explainer_for(architecture, name)
    return compile_explainer(network(architecture), explainer, image_shape=(3, size, size), num_classes=CLASSES)


def run(graph: bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    """Run a graph: logits and maps."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["logits", "map"], inputs)


def correlations(maps: np.ndarray, others: np.ndarray) -> list[float]:
    pairs = [(one.ravel(), other.ravel()) for one, other in zip(maps, others, strict=True)]
    return [float(np.corrcoef(one, other)[0, 1]) for one, other in pairs if one.std() > 0 and other.std() > 0]


# Each architecture stands for the operations it alone brings; the small networks run every explainer.
TABLE = [
    *itertools.product(("small-cnn", "resnet20", "resnet18"), ("grad_cam", "gradient", "visual_backprop")),
    *[("small-cnn", name) for name in ("grad_cam_pp", "layer_cam", "input_x_gradient", "guided_backprop", "lrp")],
    ("mobilenet_v2", "gradient"),
    ("vgg11_bn", "gradient"),
    *[("vit", name) for name in ("grad_cam", "gradient", "attention_rollout")],
    ("torchvision vit", "grad_cam"),
    ("squeezenet1_1", "grad_cam"),
    ("squeezenet1_1", "visual_backprop"),
]


def test_every_explainer_that_says_it_compiles_is_in_the_table():
    compiled_names = {name for name, kind in explainers.EXPLAINERS.items() if kind.compiled}
    assert {name for _, name in TABLE} == compiled_names


def rows_with(explainer: str) -> list[str]:
    return [architecture for architecture, name in TABLE if name == explainer]


@pytest.mark.parametrize(("architecture", "name"), TABLE)
def test_compiled_explainer_matches_torch(architecture, name, capfd):
    images = images_for(architecture, 6)
    targets = np.array([0, 3, 9, -1, 5, -1])
    graph = compiled(architecture, name)

    # Compiling folds BatchNorm. A near tie of a ReLU or a pool may fall the other way by the rounding of that alone.
    reference = models.fold_batchnorm_(copy.deepcopy(network(architecture)), torch.from_numpy(images))
    verification = verify_graph(graph, Side(reference), explainer_for(architecture, name), images, targets)

    assert verification.pcc_mean > 0.9999
    assert verification.max_difference < 0.05
    assert verification.max_logits_difference < 1e-4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("architecture", ["small-cnn", "resnet18", "squeezenet1_1", "vit"])
def test_compiled_prediction_matches_torch(architecture):
    size = SIZES[architecture]
    graph = compile_prediction(network(architecture), image_shape=(3, size, size), num_classes=CLASSES)

    assert verify_prediction(graph, Side(network(architecture)), images_for(architecture, 5)) < 1e-4
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["image"]
    assert [value.name for value in session.get_outputs()] == ["logits"]


@pytest.mark.parametrize("architecture", rows_with("gradient"))
def test_compiled_gradient_matches_captum(architecture):
    images, targets = images_for(architecture, 3), np.array([1, 2, 7])
    reference = Saliency(network(architecture)).attribute(
        torch.from_numpy(images).requires_grad_(), torch.from_numpy(targets)
    )

    _, maps = run(compiled(architecture, "gradient"), image=images, target=targets)

    found = correlations(maps, reference.mean(1).numpy())
    assert len(found) == 3
    assert min(found) > 0.999


# Captum takes tokens for channels; a transformer's maps have a test of their own beside the explainers.
@pytest.mark.parametrize("architecture", [name for name in rows_with("grad_cam") if "vit" not in name])
def test_compiled_grad_cam_matches_captum(architecture):
    images, targets = images_for(architecture, 8), np.arange(8)
    model, explainer = network(architecture), explainer_for(architecture, "grad_cam")
    attribution = LayerGradCam(model, model.get_submodule(explainer.parameters["layer"]))
    reference = attribution.attribute(torch.from_numpy(images), torch.from_numpy(targets), relu_attributions=True)

    _, maps = run(compiled(architecture, "grad_cam"), image=images, target=targets)

    found = correlations(maps, reference.detach().squeeze(1).numpy())
    assert len(found) >= 2  # The other maps are zero everywhere.
    assert min(found) > 0.9999


def test_graph_has_named_inputs_outputs_and_symbolic_batch():
    graph = onnx.load_from_string(compiled("small-cnn", "gradient")).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}

    assert shapes == {
        "image": ["batch", 3, 32, 32],
        "target": ["batch"],
        "logits": ["batch", CLASSES],
        "map": ["batch", 32, 32],
    }
    floating, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert kinds.pop("target") == integer
    assert set(kinds.values()) == {floating}


@pytest.mark.parametrize("count", [1, 2, 33])
def test_graph_answers_any_batch_size(count):
    images, targets = images_for("resnet20", 33), np.arange(33) % CLASSES
    _, expected = run(compiled("resnet20", "gradient"), image=images, target=targets)

    logits, maps = run(compiled("resnet20", "gradient"), image=images[:count], target=targets[:count])

    assert logits.shape == (count, CLASSES)
    assert min(correlations(maps, expected[:count])) > 0.9999


def test_target_of_minus_one_explains_the_predicted_class_row_by_row():
    images = images_for("small-cnn", 4)
    graph = compiled("small-cnn", "gradient")
    predicted = run(graph, image=images, target=np.full(4, -1))[0].argmax(1)
    other = (predicted + 1) % CLASSES

    _, mixed = run(graph, image=images, target=np.array([-1, other[1], -1, other[3]]))
    _, named = run(graph, image=images, target=np.array([predicted[0], other[1], predicted[2], other[3]]))
    _, wrong = run(graph, image=images, target=other)

    np.testing.assert_allclose(mixed, named, rtol=1e-5)
    assert max(correlations(mixed[[0, 2]], wrong[[0, 2]])) < 0.9999


def test_forward_pass_is_computed_once():
    layers = [layer for layer in network("small-cnn").modules() if isinstance(layer, nn.Conv2d)]
    unit_stride = [layer for layer in layers if layer.stride == (1, 1)]
    for name in [name for architecture, name in TABLE if architecture == "small-cnn"]:
        nodes = onnx.load_from_string(compiled("small-cnn", name)).graph.node
        convolutions = [node for node in nodes if node.op_type == "Conv"]
        # On the way back, the gradient adds one convolution for each of stride 1 and a transposed one for the others.
        assert len(convolutions) == len(layers) + (len(unit_stride) if explainers.EXPLAINERS[name].second_order else 0)


def test_graph_names_no_files_and_no_code():
    graph = compiled("small-cnn", "grad_cam")
    assert b".py" not in graph
    assert b"aten" not in graph


def test_compiling_twice_gives_the_same_bytes():
    explainer = explainer_for("small-cnn", "gradient")
    again = compile_explainer(network("small-cnn"), explainer, image_shape=(3, 32, 32), num_classes=CLASSES)
    assert again == compiled("small-cnn", "gradient")


def test_compiling_leaves_the_network_as_it_was():
    model = models.create("small-cnn", num_classes=CLASSES)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    compile_explainer(model, explainers.make("gradient"), image_shape=(3, 32, 32), num_classes=CLASSES)

    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_graph_runs_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(compiled("resnet20", "grad_cam"))
    images = images_for("resnet20", 3)
    np.save(tmp_path / "images.npy", images)
    script = """
        import sys
        sys.modules["torch"] = None  # Any import of torch now fails.
        import numpy, onnxruntime
        session = onnxruntime.InferenceSession("graph.onnx", providers=["CPUExecutionProvider"])
        images = numpy.load("images.npy")
        maps = session.run(["map"], {"image": images, "target": numpy.array([2, -1, 4])})[0]
        numpy.save("maps.npy", maps)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    _, expected = run(compiled("resnet20", "grad_cam"), image=images, target=np.array([2, -1, 4]))
    np.testing.assert_allclose(np.load(tmp_path / "maps.npy"), expected, rtol=1e-3, atol=1e-6)


class _Unusual(nn.Module):
    """Layers whose backward passes have no ONNX form of their own, in sizes that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 5, stride=3, padding=1, dilation=2)
        self.grouped = nn.Conv2d(8, 8, (3, 2), padding=(2, 0), groups=4)
        self.raised = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.average = nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
        self.padded_average = nn.AvgPool2d(2, stride=1, padding=1)
        self.maximum = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.adaptive = nn.AdaptiveAvgPool2d((4, 3))
        self.head = nn.Linear(6 * 4 * 3, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.entry(images), inplace=True)
        hidden = F.hardtanh(self.raised(F.silu(self.grouped(hidden))), -0.5, 0.5)
        hidden = self.average(self.padded_average(F.pad(hidden, (1, -1, 2, 0), value=0.3)))
        hidden = F.interpolate(hidden, scale_factor=1.7)
        hidden = self.maximum(hidden[:, :, 1:, ::2])
        return self.head(self.adaptive(F.gelu(hidden)).flatten(1))


def test_unusual_layers_match_torch():
    torch.manual_seed(0)
    model = _Unusual().eval()
    images = np.random.default_rng(0).standard_normal((5, 3, 41, 38), dtype=np.float32)
    explainer = explainers.make("gradient")

    graph = compile_explainer(model, explainer, image_shape=(3, 41, 38), num_classes=5)

    assert verify_graph(graph, Side(model), explainer, images, np.array([0, 1, 2, 3, -1])).max_difference < 1e-4


class _CountsImages(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).reshape(7, -1) if int(images.shape[0]) == 7 else self.inner(images)


def test_network_that_fixes_the_batch_is_refused():
    with pytest.raises(ExportError, match="batches of 7"):
        compile_prediction(_CountsImages(network("small-cnn")), image_shape=(3, 32, 32), num_classes=CLASSES)


class _Random(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images + torch.randn_like(images)).mean(dim=(2, 3))


def test_network_that_draws_random_numbers_is_refused():
    with pytest.raises(ExportError, match="random numbers"):
        compile_prediction(_Random(), image_shape=(3, 32, 32), num_classes=3)


class _Sorting(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images).mean(dim=2)


def test_operation_without_onnx_form_is_refused_in_one_line():
    with pytest.raises(ExportError) as caught:
        compile_prediction(_Sorting(), image_shape=(3, 32, 32), num_classes=3)
    assert "svd" in caught.value.message
    assert "\n" not in caught.value.message


def test_wrong_number_of_classes_is_refused():
    with pytest.raises(ModelError, match="11 classes"):
        compile_explainer(network("small-cnn"), explainers.make("gradient"), image_shape=(3, 32, 32), num_classes=11)


def test_missing_layer_is_refused_by_name():
    explainer = explainers.make("grad_cam", layer="nowhere")
    with pytest.raises(LayerNotFoundError, match="nowhere"):
        compile_explainer(network("small-cnn"), explainer, image_shape=(3, 32, 32), num_classes=CLASSES)
