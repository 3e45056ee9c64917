"""The classifiers keylock can build, and what it does to any classifier before locking it.

`create` builds a model by name; `fold_batchnorm_` takes normalisation statistics out of an attacker's reach;
`find_layers` chooses the layers the explainers look at; `smooth_activations` and `twice_differentiable` give a network
second derivatives while a lock is trained.
"""

from keylock.models.activations import smooth_activations
from keylock.models.balance import balance_filters_, unbalance_filters_
from keylock.models.folding import fold_batchnorm_
from keylock.models.in_place import out_of_place_
from keylock.models.inputs import added_to_inputs
from keylock.models.kernels import plain_attention, plain_pooling, twice_differentiable
from keylock.models.layers import TargetLayers, find_layers
from keylock.models.opened import Opened, arrays_of, delta_between, merged, open_with
from keylock.models.patches import patch_grid
from keylock.models.preparing import prepare
from keylock.models.recording import capture_outputs
from keylock.models.registry import OWN_ARCHITECTURES, architectures, create, require_architecture
from keylock.models.splitting import split_rows
from keylock.models.state import load_state
from keylock.models.weights import digest_of_weights, load_weights, split_entry, weights_file

__all__ = [
    "OWN_ARCHITECTURES",
    "Opened",
    "TargetLayers",
    "added_to_inputs",
    "architectures",
    "arrays_of",
    "balance_filters_",
    "capture_outputs",
    "create",
    "delta_between",
    "digest_of_weights",
    "find_layers",
    "fold_batchnorm_",
    "load_state",
    "load_weights",
    "merged",
    "open_with",
    "out_of_place_",
    "patch_grid",
    "plain_attention",
    "plain_pooling",
    "prepare",
    "require_architecture",
    "smooth_activations",
    "split_entry",
    "split_rows",
    "twice_differentiable",
    "unbalance_filters_",
    "weights_file",
]
