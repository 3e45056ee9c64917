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


def test_the_code_of_the_readme_is_run_with_the_documentation_of_the_client():
    code = [block.text for block in BLOCKS if block.page == "README.md"]
    run = [block.text for block in BLOCKS if block.page == "docs/client.md"]
    assert code
    assert set(code) <= set(run)


def test_the_code_about_training_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "documentation"}
    text = {block.line: block.text for block in BLOCKS if block.page == "docs/training.md"}
    for large in SMALLER:
        assert sum(large in code for code in text.values()) == 1, f"docs/training.md does not say {large}"
    for line, code in text.items():
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        # Empty lines before the code make tracebacks point into the page.
        exec(compile("\n" * (line - 1) + code, "docs/training.md", "exec"), names)  # noqa: S102 - our own documentation

    printed = capsys.readouterr().out
    assert "fidelity/grad_cam" in printed
    assert "fidelity/gradient" in printed
    assert "sha256:" in printed
    assert "with the key" in printed
    assert {"my-model.klb", "my-model.seed", "my-model.key", "home"} <= {path.name for path in tmp_path.iterdir()}
