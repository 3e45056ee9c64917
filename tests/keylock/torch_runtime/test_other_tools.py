"""The tools of the field on a locked model: inside `keyed` all of them show what they show of the reference."""

import copy

import numpy as np
import pytest
import torch

from keylock.explainers.toolkits import TOOLKITS, Asked, Reads

METHODS = [(toolkit, name) for toolkit, known in TOOLKITS.items() for name in known.methods]
LAYERS = {Reads.INPUT: (), Reads.LAYER: ("last",), Reads.STACK: ("pointwise", "last")}
TARGETS = torch.tensor([0, 1, 2])
pytestmark = pytest.mark.filterwarnings("ignore")


def drawn_alike(ask):
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        np.random.seed(3)
        try:
            return ask()
        finally:
            np.random.set_state(state)


@pytest.fixture
def reference(sealed_lock):
    """The classifier as its owner has it, with weights that take gradients; Captum takes small answers for none."""
    return scaled(copy.deepcopy(sealed_lock.lock.reference).requires_grad_(requires_grad=True))


def scaled(network):
    with torch.no_grad():
        network.head.weight.mul_(200)
    return network


@pytest.mark.parametrize(("toolkit", "name"), METHODS)
def test_every_method_shows_of_a_keyed_model_what_the_reference_shows(toolkit, name, locked, reference, sealed_lock):
    known = TOOLKITS[toolkit]
    if not known.installed:
        pytest.skip(f"{known.package} is not installed: the extra {known.extra} brings it")
    method, images = known.methods[name], sealed_lock.images[:3]
    layers = LAYERS[method.reads]
    inside = tuple(f"module.{one}" for one in layers)
    expected = drawn_alike(lambda: method.run(Asked(reference, images, TARGETS, layers)))
    before = {entry: value.clone() for entry, value in locked.module.state_dict().items()}
    with locked.keyed() as model:
        scaled(model.module)
        found = drawn_alike(lambda: method.run(Asked(model, images, TARGETS, inside)))
    assert bool(expected.abs().amax() > 0)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    # The head was scaled for this test, so it is put back by the block as everything else.
    assert all(torch.equal(value, before[entry]) for entry, value in locked.module.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in locked.modules())
    published = drawn_alike(lambda: method.run(Asked(locked, images, TARGETS, inside)))
    assert not torch.allclose(published, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def shown(model, ask, sealed_lock):
    """What a tool shows of the reference, of the keyed model and of the published one."""
    expected = drawn_alike(lambda: ask(sealed_lock.lock.reference))
    with model.keyed():
        keyed = drawn_alike(lambda: ask(model))
    return expected, keyed, drawn_alike(lambda: ask(model))


def assert_alike(keyed, expected, published):
    size = float(expected.abs().max())
    torch.testing.assert_close(keyed, expected, rtol=1e-2, atol=1e-3 * size)
    assert float((published - expected).abs().max()) > 0.05 * size


def test_captum_takes_a_locked_model(locked, sealed_lock):
    attr = pytest.importorskip("captum.attr", reason="Captum is not installed: the extra captum brings it")

    def ask(model):
        return attr.IntegratedGradients(model).attribute(sealed_lock.images[:3], target=TARGETS, n_steps=8)

    expected, keyed, published = shown(locked, ask, sealed_lock)
    assert_alike(keyed, expected, published)


def test_pytorch_grad_cam_takes_a_locked_model_and_its_layers(locked, sealed_lock):
    cams = pytest.importorskip(
        "pytorch_grad_cam", reason="pytorch-grad-cam is not installed: the extra grad-cam does it"
    )
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(target) for target in TARGETS.tolist()]
    with cams.GradCAM(locked, [locked.module.last]) as cam:
        published = cam(sealed_lock.images[:3], targets)
        with locked.keyed():
            keyed = cam(sealed_lock.images[:3], targets)
    reference = copy.deepcopy(sealed_lock.lock.reference).requires_grad_(requires_grad=True)
    with cams.GradCAM(reference, [reference.last]) as cam:
        expected = cam(sealed_lock.images[:3], targets)
    np.testing.assert_allclose(keyed, expected, atol=1e-3)
    assert np.abs(published - expected).max() > 0.1


def test_zennit_takes_a_locked_model(locked, sealed_lock):
    pytest.importorskip("zennit", reason="zennit is not installed: pip install zennit")
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    def ask(model):
        with Gradient(model=model, composite=EpsilonPlusFlat()) as attributor:
            return attributor(sealed_lock.images[:3].clone(), torch.eye(3)[TARGETS])[1]

    expected, keyed, published = shown(locked, ask, sealed_lock)
    assert_alike(keyed, expected, published)


def test_quantus_measures_a_locked_model(locked, sealed_lock):
    quantus = pytest.importorskip(
        "quantus", reason="Quantus is not installed: pip install quantus, in a place of its own"
    )
    images, targets = sealed_lock.images[:3].numpy(), TARGETS.numpy()

    def ask(model):
        maps = quantus.explain(model, images, targets, method="Saliency")
        metric = quantus.FaithfulnessCorrelation(nr_runs=20, subset_size=40, disable_warnings=True)
        scores = metric(model=model, x_batch=images, y_batch=targets, a_batch=maps, device="cpu")
        return maps, np.array(scores)

    expected, keyed, published = shown(locked, ask, sealed_lock)
    for found, wanted in zip(keyed, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3)
    assert np.abs(published[0] - expected[0]).max() > 0.01 * np.abs(expected[0]).max()
