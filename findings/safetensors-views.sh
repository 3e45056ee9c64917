#!/usr/bin/env bash
# Saving a transposed NumPy view with safetensors stores other values than the view shows.
#
# Versions: safetensors 0.8.0, numpy 2.4.6, Python 3.11. Date: 2026-11-28.
# One would guess: `save({"w": a.T})` followed by `load` gives `a.T`, or an error as torch's `save_file` raises.
# What is true: the bytes are written in the order they lie in memory, under the shape of the view. Nothing is raised,
#   the shape that comes back is right, the values are permuted. `np.ascontiguousarray` before `save` mends it.
# Why our users meet it: weights that are converted between frameworks are transposed with `.T`, and a weights file is
#   handed to `keylock train --init` as .safetensors.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import load, save

rows = np.arange(6, dtype=np.float32).reshape(2, 3)
view = rows.T
back = load(save({"w": view}))["w"]
whole = load(save({"w": np.ascontiguousarray(view)}))["w"]
print("the view:", view.tolist())
print("what comes back:", back.tolist())
print("what comes back of a contiguous copy:", whole.tolist())
assert back.shape == view.shape, "the shape changed"
assert not np.array_equal(back, view), "views are saved as they look now"
assert np.array_equal(back.ravel(), rows.ravel()), "the values are permuted in another way now"
assert np.array_equal(whole, view)
PY
echo "as described"
