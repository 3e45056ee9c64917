"""What was fastest is remembered: a later start tries it alone, and proves it again."""

import json
import stat
from dataclasses import replace

import pytest
from other_runtime import FILES, Other, loaded, slowed, ways

from keylock_server.inference.choices import Choices
from keylock_server.inference.cores import describe_processor
from keylock_server.inference.way import Way

WAYS = [Way("onnxruntime", "float32", "whole"), Way("openvino", "float32", "whole")]
ABOUT = {"model": "sha256:0", "processor": "one"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ways.json"


def choose(tiny, file, monkeypatch, other, about=ABOUT):
    """Loads a graph that OpenVINO is the faster for, and returns how it is computed."""
    chosen = ways(other, runtime="auto", variant="auto", choices=Choices(file, about))
    monkeypatch.setattr(chosen, "open", slowed(chosen, 0.02))
    return loaded(tiny, chosen).way


def test_a_later_start_tries_what_was_chosen_and_nothing_else(tiny, file, monkeypatch, server_log):
    first = Other()
    chosen = choose(tiny, file, monkeypatch, first)
    assert chosen.runtime == "openvino"
    assert len(first.opened) > 1
    again = Other()
    assert choose(tiny, file, monkeypatch, again) == chosen
    assert again.opened == [chosen.numbers]
    assert f"computed in {chosen}, as before" in server_log.text


def test_what_is_remembered_and_not_right_any_more_does_not_serve(tiny, file, monkeypatch, server_log):
    assert choose(tiny, file, monkeypatch, Other()).runtime == "openvino"
    wrong = Other(change=lambda values: values if values.ndim == 2 else values[:, ::-1])
    assert choose(tiny, file, monkeypatch, wrong).runtime == "onnxruntime"
    assert "whose answers correlate by" in server_log.text
    # That is remembered in its turn.
    silent = Other()
    assert choose(tiny, file, monkeypatch, silent).runtime == "onnxruntime"


def test_the_standard_is_remembered_too_and_then_nothing_is_compared(tiny, file):
    def load(other):
        return loaded(tiny, ways(other, runtime="auto", variant="bfloat16", choices=Choices(file, ABOUT)))

    assert load(Other(fails=True)).way.runtime == "onnxruntime"
    other = Other()
    assert load(other).way.runtime == "onnxruntime"
    assert other.opened == []


@pytest.mark.parametrize("name", list(ABOUT))
def test_with_another_model_processor_or_version_nothing_is_remembered(name, file):
    Choices(file, ABOUT).keep(FILES, WAYS, WAYS[1])
    assert Choices(file, ABOUT).find(FILES, WAYS, WAYS[0]) == WAYS[1]
    assert Choices(file, {**ABOUT, name: "another"}).find(FILES, WAYS, WAYS[0]) is None
    assert Choices(file, ABOUT).find(replace(FILES, what="another"), WAYS, WAYS[0]) is None
    assert Choices(file, ABOUT).find(FILES, WAYS[:1], WAYS[0]) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "keylock-ways/v2", "ways": {}}', '{"ways": 3}', "\xff"])
def test_a_file_of_something_else_is_as_if_there_were_none(content, file):
    file.write_text(content, "latin-1")
    choices = Choices(file, ABOUT)
    assert choices.find(FILES, WAYS, WAYS[0]) is None
    choices.keep(FILES, WAYS, WAYS[1])
    assert choices.find(FILES, WAYS, WAYS[0]) == WAYS[1]


def test_an_entry_that_names_no_way_there_is_counts_for_nothing(file):
    choices = Choices(file, ABOUT)
    choices.keep(FILES, WAYS, WAYS[1])
    for wrong in ("int4 by magic", 3, None):
        document = json.loads(file.read_text("utf-8"))
        (name,) = document["ways"]
        document["ways"][name]["way"] = wrong
        file.write_text(json.dumps(document), "utf-8")
        assert choices.find(FILES, WAYS, WAYS[0]) is None


def test_the_file_is_the_users_own_and_does_not_grow_without_end(file, server_log):
    for number in range(510):
        Choices(file, {"model": str(number)}).keep(FILES, WAYS, WAYS[1])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(json.loads(file.read_text("utf-8"))["ways"]) == 500
    assert Choices(file, {"model": "509"}).find(FILES, WAYS, WAYS[0]) == WAYS[1]
    assert Choices(file, {"model": "0"}).find(FILES, WAYS, WAYS[0]) is None


def test_a_file_that_cannot_be_written_is_said_and_no_more(tmp_path, server_log):
    Choices(tmp_path / "nowhere" / "ways.json", ABOUT).keep(FILES, WAYS, WAYS[1])
    assert "is not remembered" in server_log.text


def test_processors_are_told_apart_by_name_and_features(tmp_path):
    about = tmp_path / "cpuinfo"
    found = set()
    for name, flags in (("One", "avx2 fma"), ("One", "fma avx2"), ("One", "avx2 amx_bf16"), ("Two", "avx2 fma")):
        about.write_text(f"model name\t: {name}\nflags\t\t: {flags}\n", "utf-8")
        found.add(describe_processor(about))
    assert len(found) == 3
    assert describe_processor(tmp_path / "missing")
