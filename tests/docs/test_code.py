"""The Python code of the documentation compiles, and that of docs/training.md runs from its first line to its last."""

import documentation
import pytest

BLOCKS = [block for page in documentation.PAGES for block in documentation.fenced(page) if block.kind == "python"]
# So that it takes seconds: nothing is learned, and everything is run.
SMALLER = {
    "train_count=6000, test_count=1000": "train_count=64, test_count=24",
    '"batch_size": 64': '"batch_size": 16',
    "range(8)": "range(1)",
    "LockSettings(steps=2000)": "LockSettings(steps=3)",
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_code_compiles(block):
    compile(block.text, block.place, "exec")


def test_the_code_about_explainers_runs(capsys):
    run([block for block in BLOCKS if block.page == "docs/explainers.md"])

    printed = capsys.readouterr().out
    assert "'grad_cam': (2, 8, 8)" in printed
    assert "'occlusion': (2, 32, 32)" in printed


def run(blocks):
    """Run blocks of one page from the first line to the last."""
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        # Empty lines before the code make tracebacks point into the page.
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)  # noqa: S102 - our own pages


def test_the_code_about_training_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in BLOCKS if block.page == "docs/training.md"]
    for large, small in SMALLER.items():
        assert sum(large in block.text for block in blocks) == 1, f"docs/training.md does not say {large}"
        blocks = [block._replace(text=block.text.replace(large, small)) for block in blocks]
    run(blocks)

    printed = capsys.readouterr().out
    assert "fidelity/grad_cam" in printed
    assert "fidelity/gradient" in printed
    assert "sha256:" in printed
    assert "opened by the trigger" in printed
    assert {"my-model.klb", "my-model.seed", "my-model.key", "home"} <= {path.name for path in tmp_path.iterdir()}
