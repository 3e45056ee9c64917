"""docs/evaluation.md explains every figure, and its code runs."""

import re
from pathlib import Path

import pytest

from keylock.evaluation import SIMILARITIES, Subject
from keylock.explainers import make

TEXT = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text("utf-8")


def test_the_code_runs_on_a_bundle(untrained_bundle, monkeypatch, capsys):
    monkeypatch.chdir(untrained_bundle.bundle.parent)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "docs/evaluation.md", "exec"), {"__name__": "documentation"})  # noqa: S102 - our own code

    printed = capsys.readouterr().out
    assert "pcc/keyless/grad_cam" in printed
    assert "correlation 0.5" in printed
    assert "shift (0, 1)" in printed


@pytest.mark.parametrize("masks", [True, False])
def test_every_figure_is_explained(masks, tiny_net, smooth_images, key_for):
    import torch

    model, images = tiny_net(), smooth_images(4, 16)
    subject = Subject(
        module=model,
        reference=model,
        key=key_for(),
        images=images,
        labels=torch.zeros(4, dtype=torch.int64),
        masks=torch.ones(4, 16, 16, dtype=torch.bool) if masks else None,
    )
    explainer = make("gradient")
    figures = [*subject.predictions(), *subject.object_area(), *subject.compare("gradient", explainer).figures]
    figures += subject.faithfulness("gradient", explainer, count=2, steps=2)

    explained = set(re.findall(r"^\| `([a-z_]+)(?:/INPUT)?(?:/LABEL)?` \|", TEXT, flags=re.MULTILINE))
    measured = {figure.name.partition("/")[0] for figure in figures}
    assert measured <= explained
    assert set(SIMILARITIES) <= measured
    inputs = {figure.name.split("/")[1] for figure in figures if "/" in figure.name}
    for name in inputs:
        assert f"`{name}`" in TEXT
