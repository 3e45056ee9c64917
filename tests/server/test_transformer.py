"""A vision transformer from training to answers: true maps of tokens for licenses, decoys for everybody else."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from datetime import UTC, datetime  # noqa: E402

from keylock import LockSettings, load_bundle  # noqa: E402
from keylock.bundle import KeyFile  # noqa: E402
from keylock.data import open_data  # noqa: E402
from keylock.data.batches import load_batch  # noqa: E402
from keylock.evaluation import find_reference, load_reference  # noqa: E402
from keylock.models import registry  # noqa: E402
from keylock.models.vit import ViT  # noqa: E402
from keylock.pipeline import TrainPlan, train  # noqa: E402
from keylock.training import Silent  # noqa: E402

EXPLAINERS = ("grad_cam", "attention_rollout")


@pytest.fixture(scope="module")
def served(vendor, start_server, tmp_path_factory):
    """Two blocks, locked for maps of tokens and of attention, and a server for them."""
    folder = tmp_path_factory.mktemp("transformer")
    data = open_data("shapes", image_size=16, train_count=64, test_count=16)
    sealer = KeyFile.create(folder / "key-file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._OWN, "vit_pico", partial(ViT, width=24, depth=2))
        plan = TrainPlan(
            out=folder / "vit.klb",
            name="vit",
            data=data,
            architecture="vit_pico",
            # A rate at which few steps change maps visibly.
            settings=LockSettings(steps=4, delta_rank=2, learning_rate=0.03),
            explainers=EXPLAINERS,
            reference_steps=4,
            batch_size=16,
            # So few and so small images hardly tell a weaker key from what is on them.
            strength=32 / 255,
            device="cpu",
        )
        made = {"signing_key": vendor.signing_key, "sealer": sealer, "progress": Silent()}
        train(plan, seed=vendor.seed, now=lambda: datetime(2026, 11, 22, tzinfo=UTC), **made)
        loaded = load_bundle(plan.out, key=sealer)
        reference = load_reference(find_reference(plan.out), loaded.manifest)
    calls = start_server(bundle=plan.out, key_file=folder / "key-file")
    images = load_batch(data.test, data.preprocessing).images[:3]
    return SimpleNamespace(calls=calls, loaded=loaded, reference=reference, images=images)


def test_all_of_it_is_locked_and_compiled(served):
    entries = served.loaded.manifest.explainers
    assert [(entry.name, entry.runtime) for entry in entries] == [(name, "onnx") for name in EXPLAINERS]
    assert min(entry.pcc_to_reference for entry in entries) > 0.999
    assert "blocks.0.attn.qkv.weight" in served.loaded.delta.names


@pytest.mark.parametrize("name", EXPLAINERS)
def test_licensed_rows_are_the_reference_and_others_the_published_model(name, served, vendor, tiny):
    sent = [tiny.tensor_image(image) for image in served.images.numpy()]
    seen = []
    for token, model in ((vendor.grant().token, served.reference), (None, served.loaded.module)):
        answer = served.calls.explain(*sent, token=token, explainer=name)

        expected = served.loaded.explainers[name].explain(model, served.images, torch.full((3,), -1)).maps.numpy()
        maps = np.stack([tiny.to_array(result.map) for result in answer.results])
        np.testing.assert_allclose(maps, expected, rtol=0, atol=0.01 * expected.std())
        assert [result.keyed for result in answer.results] == [token is not None] * 3
        seen.append(maps)
    assert maps.shape[1:] == (4, 4)
    assert np.abs(seen[0] - seen[1]).max() > 0.1 * seen[0].std() > 0
