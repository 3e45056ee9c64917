"""Engines are kept apart by all that they depend on, whole, private, and not for ever."""

import os

import pytest

from keylock.errors import ServiceError
from keylock_server.inference.engines import Engines


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "engines"


class Builder:
    """Builds an engine of some content, or takes the one that is there."""

    def __init__(self, content: bytes = b"engine") -> None:
        self.content, self.built = content, 0

    def __call__(self, place):
        engine = place / "graph.engine"
        if not engine.exists():
            self.built += 1
            engine.write_bytes(self.content)
        elif engine.read_bytes() == b"broken":
            raise RuntimeError("cannot be deserialized")
        return engine.read_bytes()


def test_an_engine_is_built_once(folder):
    builder = Builder()
    assert [Engines(folder).use([b"graph"], builder) for _ in range(3)] == [b"engine"] * 3
    assert builder.built == 1


def test_what_an_engine_depends_on_tells_it_apart(folder):
    builder, engines = Builder(), Engines(folder)
    for parts in ([b"graph", b"1"], [b"graph1", b""], [b"other", b"1"], [b"graph", b"2"]):
        engines.use(parts, builder)
    assert builder.built == 4


def test_an_engine_that_fits_no_more_is_built_again(folder, server_log):
    engines, builder = Engines(folder), Builder()
    engines.use([b"graph"], Builder(b"broken"))
    assert engines.use([b"graph"], builder) == b"engine"
    assert "built again" in server_log.text
    assert engines.use([b"graph"], Builder()) == b"engine"
    assert builder.built == 1


def test_what_fails_leaves_nothing_behind(folder):
    def fail(place):
        (place / "half").write_bytes(b"half an engine")
        raise RuntimeError("out of memory")

    before = sorted(path.name for path in (Engines(folder), folder)[1].iterdir())
    with pytest.raises(RuntimeError, match="out of memory"):
        Engines(folder).use([b"graph"], fail)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_whoever_is_slower_uses_its_own_engine_once(folder):
    """Two processes build the same engine at the same time."""
    engines, quick = Engines(folder), Builder()

    def slow(place):
        Engines(folder).use([b"graph"], quick)
        return Builder(b"slow")(place)

    assert engines.use([b"graph"], slow) == b"slow"
    assert engines.use([b"graph"], Builder(b"third")) == b"engine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_was_timed_is_there_for_the_next_engine(folder):
    seen = []

    def build(place):
        timings = place / "sm90.timing"
        seen.append(timings.read_bytes() if timings.exists() else b"")
        timings.write_bytes(seen[-1] + b"+")
        return Builder()(place)

    for graph in (b"a", b"b", b"c"):
        Engines(folder).use([graph], build)
    assert seen == [b"", b"+", b"++"]


def test_engines_that_were_not_used_for_longest_go(folder):
    engines, builder = Engines(folder, kept=2), Builder()
    for age, graph in enumerate((b"a", b"b")):
        engines.use([graph], builder)
        for place in folder.glob("?" * 64):
            if place.stat().st_mtime > 10:
                os.utime(place, (age + 1, age + 1))
    engines.use([b"a"], builder)
    engines.use([b"c"], builder)
    assert builder.built == 3
    engines.use([b"a"], builder)
    assert builder.built == 3
    engines.use([b"b"], builder)
    assert builder.built == 4


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_a_folder_within_reach_of_others_is_refused(folder):
    Engines(folder).use([b"graph"], Builder())
    assert [path for path in (folder, *folder.iterdir()) if path.is_dir() and path.stat().st_mode & 0o077] == []
    for mode in (0o750, 0o701, 0o722):
        folder.chmod(mode)
        with pytest.raises(ServiceError, match="chmod 700"):
            Engines(folder)
