"""A file is what it was until the new one is whole."""

from pathlib import Path

import pytest

from keylock.replacing import replacing, require_writable


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    place = tmp_path / "state.json"
    place.write_text("old")
    with replacing(place) as unfinished:
        unfinished.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    place = tmp_path / "state.json"
    place.write_text("old")

    def stopped_halfway():
        with replacing(place) as unfinished:
            unfinished.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_halfway()
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_is_writable_or_the_nearest_above_it_is(tmp_path):
    require_writable(tmp_path / "not" / "yet" / "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        require_writable(tmp_path / "file" / "below")
    with pytest.raises(OSError, match=r"\S"):
        require_writable(Path("/proc/1"))
