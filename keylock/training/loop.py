"""The loop around any training: steps, progress, a state kept now and then, and nothing lost when it is stopped."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from keylock.errors import NonFiniteLossError, OutOfMemoryError, StorageError
from keylock.training.progress import Progress

__all__ = ["memory_limits_named", "run_steps"]

_CHECKPOINT_EVERY = 200
_CHECKPOINT_EVERY_S = 300.0
_CPU_ALLOCATOR = "can't allocate memory"


def run_steps(
    stage: str,
    total: int,
    done: int,
    *,
    take_step: Callable[[], Mapping[str, float]],
    keep: Callable[[], None],
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Take the steps that are left, and keep the state every 200 steps and every five minutes.

    Args:
        stage: What the run is called.
        total: Steps in all.
        done: Steps taken before.
        take_step: Takes one step and returns its figures; when it raises, nothing has changed but what `keep` can undo.
        keep: Writes the state behind the last finished step.
        progress: Hears about every step.
        clock: Seconds that only grow.

    Raises:
        NonFiniteLossError: Training diverged. What led there is in the weights already, so that the state of some steps
            ago is the one to go on from, more slowly, and nothing is kept.
        StorageError: The state cannot be written; the one before is kept.
    """
    keep()
    kept_at = clock()
    progress.start(stage, total, done)
    try:
        while done < total:
            figures = take_step()
            done += 1
            progress.advance(figures)
            if done % _CHECKPOINT_EVERY == 0 or clock() - kept_at >= _CHECKPOINT_EVERY_S:
                keep()
                kept_at = clock()
    except (NonFiniteLossError, StorageError):
        raise
    except BaseException:
        keep()
        raise
    else:
        keep()
    finally:
        progress.finish()


@contextmanager
def memory_limits_named(rows: int, *, parts: int | None = None) -> Iterator[None]:
    """Turn a lack of memory inside the block into an error that says what to try.

    Args:
        rows: Images in the batch.
        parts: In how many parts a step takes it; None where it cannot be taken in parts.

    Raises:
        OutOfMemoryError: There was not enough memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(rows, parts) from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise OutOfMemoryError(rows, parts) from error
