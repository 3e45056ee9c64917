"""Weights that come without the version of the class that wrote them, as those of bundles and deltas do."""

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from keylock.models import delta_between, load_state, merged


class Versioned(nn.Linear):
    """Converts what an old version wrote, and refuses what does not say its version: torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
        version = local_metadata.get("version")
        if version not in (1, 2):
            raise ValueError("no version")
        if version == 1:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(Versioned(3, 2), nn.BatchNorm1d(2)).eval()


def test_tensors_are_loaded_as_those_of_the_present_version(network):
    changed = {name: torch.full_like(tensor, 3) for name, tensor in network.state_dict().items()}
    load_state(network, changed)
    assert all(bool((tensor == 3).all()) for tensor in network.state_dict().values())
    load_state(network, {"0.weight": torch.ones(2, 3)}, strict=False)
    assert bool((network[0].weight == 1).all())
    assert bool((network[0].bias == 3).all())


def test_what_does_not_fit_is_refused(network):
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        load_state(network, {"0.weight": torch.ones(3, 3)}, strict=False)
    with pytest.raises(RuntimeError, match="Missing"):
        load_state(network, {})


def test_a_delta_opens_a_network_of_such_layers(network):
    reference = nn.Sequential(Versioned(3, 2), nn.BatchNorm1d(2)).eval()
    opened = merged(network, delta_between(network, reference))
    images = torch.rand(4, 3)
    assert torch.allclose(opened(images), reference(images), atol=1e-6)
