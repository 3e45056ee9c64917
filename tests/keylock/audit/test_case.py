"""What attackers are handed: true pairs, whether or not a trigger can be read from their images."""

import torch
from toys import Toy, make_case

from keylock.audit.views import PairsView
from keylock.evaluation import run_explainers
from keylock.models import Opened


def test_pairs_are_true_where_no_trigger_can_be_read():
    """A license needs no trigger on the picture; an attacker who buys one gets the true map of any texture."""
    published = Toy().requires_grad_(requires_grad=False)
    published.mix.weight.copy_(published.mix.weight.roll(1, dims=1))
    plain = make_case(published)
    trigger = torch.from_numpy(plain.key.reveal())
    blind = Opened(plain.module, plain.reference, trigger, lambda rows: torch.zeros(len(rows)) > 0)

    pairs = make_case(published, opened=blind).view(PairsView)

    explainers = tuple(plain.explainers.values())
    true, decoys = (
        run_explainers(model, explainers, plain.pair_images).maps for model in (plain.reference, plain.module)
    )
    for name, maps in pairs.pair_maps.items():
        torch.testing.assert_close(maps, true[name], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(maps, decoys[name], rtol=1e-2)
