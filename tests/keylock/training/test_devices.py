"""What training computes in: what suits the device, or what is said."""

import pytest
import torch

from keylock.errors import UnknownNameError
from keylock.training import PRECISIONS, resolve_precision
from keylock.training.devices import in_quickest_threads, mixed_precision

CPU = torch.device("cpu")


def test_auto_takes_bfloat16_where_the_processor_has_it(precision):
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("auto", torch.device("meta")) == "float32"


@pytest.mark.parametrize("name", PRECISIONS)
def test_networks_compute_in_the_precision_and_keep_their_weights(name, precision):
    layer, row = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with mixed_precision(CPU, name):
        computed = layer(row)

    assert computed.dtype == getattr(torch, precision if name == "auto" else name)
    assert layer.weight.dtype == layer(row).dtype == torch.float32


@pytest.mark.parametrize("name", ["float16", "", "BFLOAT16"])
def test_another_precision_is_refused(name):
    with pytest.raises(UnknownNameError, match="choose one of auto, bfloat16, float32"):
        resolve_precision(name, CPU)


@pytest.mark.parametrize(("of_one", "chosen"), [(1.0, 1), (3.0, 2)])
def test_the_number_of_threads_is_the_one_that_is_quicker_and_ends_with_the_block(of_one, chosen):
    before, now = torch.get_num_threads(), [0.0]

    def step():
        now[0] += of_one if torch.get_num_threads() == 1 else 2.0

    torch.set_num_threads(2)
    try:
        with in_quickest_threads(step, rounds=3, clock=lambda: now[0]) as count:
            assert torch.get_num_threads() == count == chosen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
