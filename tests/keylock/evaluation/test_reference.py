"""The reference model of a bundle is found, loaded, and no other is taken for it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from keylock.bundle import open_bundle
from keylock.errors import BundleError, ModelError
from keylock.evaluation import find_reference, load_reference, reference_digest


@pytest.fixture
def manifest(untrained_bundle):
    return open_bundle(untrained_bundle.bundle, trusted=None).manifest


def test_the_reference_beside_a_bundle_is_found_and_is_the_one_it_names(untrained_bundle, manifest):
    place = find_reference(untrained_bundle.bundle)
    reference = load_reference(place, manifest)

    assert place == untrained_bundle.reference
    assert reference_digest(reference) == manifest.reference_digest
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    with torch.no_grad():
        assert reference(torch.zeros(1, 3, 16, 16)).shape == (1, 8)


def test_other_weights_are_refused(untrained_bundle, manifest, tmp_path):
    weights = load_file(untrained_bundle.reference)
    weights["linear.bias"][0] += 1e-6
    save_file(weights, tmp_path / "other.safetensors")

    with pytest.raises(ModelError, match=r"other.safetensors is not the reference model of the bundle small"):
        load_reference(tmp_path / "other.safetensors", manifest)


def test_a_missing_reference_and_a_bundle_that_names_none_are_refused(untrained_bundle, manifest, tmp_path):
    with pytest.raises(ModelError, match="give its weights \\(reference=\\)"):
        find_reference(tmp_path / "small.klb")
    for change in (
        {"reference_digest": None},
        {"architecture": manifest.architecture.model_copy(update={"module": "graph_only"})},
    ):
        with pytest.raises(BundleError, match="does not say how to build its reference model"):
            load_reference(untrained_bundle.reference, manifest.model_copy(update=change))
