"""A folder is held by one run at a time, and free as soon as that run is gone, however it ended."""

import signal
import subprocess
import sys
import time

import pytest

from keylock.errors import InUseError, StorageError
from keylock.files.exclusive import held, require_free

HOLDER = """
import sys, time
from pathlib import Path
from keylock.files.exclusive import held
with held(Path(sys.argv[1]), "keylock train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_the_message_names_the_process(holder, tmp_path):
    for attempt in (lambda: held(tmp_path, "keylock train").__enter__(), lambda: require_free(tmp_path)):
        with pytest.raises(InUseError) as caught:
            attempt()
        assert f"in use by keylock train, process {holder.pid} on " in caught.value.message
        assert caught.value.folder == tmp_path


def test_a_lock_dies_with_its_process(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(50):
        try:
            with held(tmp_path, "keylock retire"):
                return
        except InUseError:  # The system may close the files of a killed process a moment later.
            time.sleep(0.02)
    pytest.fail("the folder of a killed process stayed in use")


def test_a_folder_is_free_after_the_block_even_where_it_raised(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "new", "a run"):
        raise RuntimeError
    require_free(tmp_path / "new")
    require_free(tmp_path / "never-made")
    with held(tmp_path / "new", "a run"), pytest.raises(InUseError, match="a run, process"):
        require_free(tmp_path / "new")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"), held(tmp_path / "file" / "work", "a run"):
        pass
