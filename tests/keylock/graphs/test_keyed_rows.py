"""splitting.py: every row runs where it belongs, and comes back where it was."""

import numpy as np
import pytest

from keylock.graphs.keyed_rows import run_split


def runs(calls):
    def make(kind):
        def run(image, target):
            calls.append((kind, image.tolist()))
            return [image + (100 if kind else 0), np.stack([target, target], axis=1)]

        return run

    return {"with_key": make(1), "without": make(0)}


@pytest.mark.parametrize(
    ("keyed", "expected"),
    [
        ([1, 1], [(1, [0, 1])]),
        ([0, 0], [(0, [0, 1])]),
        ([0, 1, 1, 0], [(1, [1, 2]), (0, [0, 3])]),
    ],
)
def test_rows_run_once_where_they_belong_and_keep_their_order(keyed, expected):
    calls, count = [], len(keyed)
    rows = {"image": np.arange(count, dtype=np.float32), "target": np.arange(count, dtype=np.int64)}
    first, second = run_split(np.asarray(keyed, np.float32), rows, **runs(calls))
    assert calls == expected
    assert first.tolist() == [place + 100 * kind for place, kind in enumerate(keyed)]
    assert first.dtype == np.float32
    assert second.tolist() == [[place, place] for place in range(count)]
