"""docs/query-guard.md says what the measured files say."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_agrees_with_the_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("render_guard", ROOT / "benchmarks" / "render_guard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.PAGE.read_text("utf-8")
    assert sys.modules["render_results"].render(text, module.RESULTS, module.TABLES) == text
