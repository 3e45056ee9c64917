"""A file is what it was until the new one is whole."""

import os
import resource
import stat
from pathlib import Path

import pytest

from keylock.files.atomic import PRIVATE, PUBLIC, make_folders, replacing, require_writable, write_file


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    place = tmp_path / "state.json"
    place.write_text("old")
    with replacing(place, mode=PUBLIC) as unfinished:
        unfinished.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    place = tmp_path / "state.json"
    place.write_text("old")

    def stopped_halfway():
        with replacing(place, mode=PUBLIC) as unfinished:
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


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("mode", [PRIVATE, PUBLIC])
def test_files_have_their_mode_whatever_the_umask_is(tmp_path, umask, mode):
    write_file(tmp_path / "written", "text", mode=mode)
    with replacing(tmp_path / "replaced", mode=mode) as unfinished:
        assert mode_of(unfinished) == PRIVATE
        unfinished.write_text("text")
    assert mode_of(tmp_path / "written") == mode_of(tmp_path / "replaced") == mode


def test_a_file_that_is_there_does_not_become_more_open(tmp_path):
    for before, mode, after in ((0o600, PUBLIC, 0o600), (0o666, PUBLIC, 0o644), (0o644, PRIVATE, 0o600)):
        place = tmp_path / "file"
        place.write_text("a longer text than before")
        place.chmod(before)
        write_file(place, b"new", mode=mode)
        assert (mode_of(place), place.read_text()) == (after, "new")


def test_a_new_file_is_never_written_over_another(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "dangling", b"", mode=PUBLIC, new=True)


def test_folders_are_never_open_to_writing(tmp_path, umask):
    make_folders(tmp_path / "a" / "b", mode=PRIVATE)
    make_folders(tmp_path / "a" / "c")
    assert [mode_of(tmp_path / "a" / name) for name in "bc"] == [0o700, 0o755 & ~umask]
    assert mode_of(tmp_path / "a") == 0o755 & ~umask


def test_a_file_that_finds_no_room_is_named_and_leaves_nothing_new(tmp_path):
    old = tmp_path / "old"
    write_file(old, b"kept", mode=PUBLIC)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for name, new in (("new", True), ("old", False)):
            with pytest.raises(OSError, match="File too large") as caught:
                write_file(tmp_path / name, b"x" * 1000, mode=PUBLIC, new=new)
            assert caught.value.filename == str(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [old]
