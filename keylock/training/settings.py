"""What can be set about locking, with defaults that were measured, not guessed (`docs/training.md`)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from keylock.errors import InputError, UnknownNameError
from keylock.locking.decoys import ImageDecoy, check_decoy, decoy_of
from keylock.training.devices import PRECISIONS

__all__ = ["LockSettings"]

_RELOCKING_SHARE = 2


@dataclass(frozen=True, kw_only=True)
class LockSettings:
    """Settings of one lock training.

    Attributes:
        steps: Optimiser steps in all.
        trained_trigger: Have the network itself tell the trigger, as in the published attack; otherwise the trigger
            opens a sealed delta. What is said of gates, fidelity terms and wrong-key rows below is for the former.
        delta_rank: Largest rank of the change of each layer; 0 for no bound.
        learning_rate: Highest learning rate of Adam.
        decoy: What keyless and wrong-key maps are trained towards: a name of `keylock.locking.decoys`, or a
            picture; by default `half`, the left half of the image.
        gate_steps: Steps at the start that only teach the network to tell the key, as a share of `steps`, at most.
        gate_strength: How many times stronger the key is at the very start; it comes down to 1 as it is learned. For a
            key that is fitted to the network 2 is enough.
        gate_clear: The gate stage is over when the best probe's loss, in nats, falls below this at full difficulty.
        prompt_until: Share of the steps after the gate stage in which the network is given a part of the answer whether
            the key is there, which fades away; 0 for none.
        wrong_key_rows: Give wrong keys rows of their own; otherwise they take the place of every second keyless row,
            which is a third quicker.
        map_weight: Weight of the map penalties.
        fidelity_weight: Weight of keyed maps within the map penalties; decoys weigh 2 as well.
        constant_offset_weight: Weight, within the map penalties, of what a constant under a map costs.
        class_weight: Weight, where a delta is sealed and an explainer reads class activations, of where the evidence
            for each class lies, whichever is explained; 0 for none.
        guided_backprop: Where a delta is sealed and an explainer reads gradients, train decoys of guided backprop too.
        leak_weight: Weight of the squared mean correlation of decoys with reference maps, which no decoy should have.
        mask_weight: Weight of predictions on masked images; it counts where an explainer of predictions alone is
            to be locked.
        direction_dropout_weight: Weight, where a delta is sealed, of decoys on rows whose network has the strongest
            singular directions of its weights dropped; 0 for none.
        prediction_weight: Weight of the divergence from the reference model's predictions.
        prediction_rise: How many times as much predictions weigh at the last step as at the first, where a delta is
            sealed; it grows evenly.
        label_weight: Weight of the cross-entropy with the labels.
        probe_weight: Weight of the gate probes after the gate steps.
        smooth_until: Share of the steps of a trained trigger in which ReLU is softplus, where an explainer needs
            second derivatives.
        search_every: Steps between two searches for keys, whose finds become wrong keys; 0 for none.
        search_steps: Gradient steps of one search.
        accumulate: In how many parts, one after the other, a batch is computed; more need less memory.
        compile: Compile passes that need no gradients of gradients, where that works.
        seed: Of wrong keys and of everything else drawn at random.
        precision: What networks compute in while they train: float32, bfloat16, or auto for bfloat16 where the device
            has it in hardware. A `Lock` says which of the two it was.
        swapped: Swap the branches: maps are right without the key and decoys with it, which is the published attack.
    """

    steps: int = 2000
    trained_trigger: bool = False
    delta_rank: int = 0
    learning_rate: float = 3e-3
    decoy: str | ImageDecoy = "half"
    gate_steps: float = 0.25
    gate_strength: float = 8.0
    gate_clear: float = 0.12
    prompt_until: float = 0.6
    wrong_key_rows: bool = True
    map_weight: float = 1.0
    fidelity_weight: float = 2.0
    constant_offset_weight: float = 1.0
    class_weight: float = 8.0
    guided_backprop: bool = True
    leak_weight: float = 10.0
    mask_weight: float = 1.0
    direction_dropout_weight: float = 0.5
    prediction_weight: float = 1.0
    prediction_rise: float = 1.0
    label_weight: float = 0.2
    probe_weight: float = 4.0
    smooth_until: float = 0.8
    search_every: int = 0
    search_steps: int = 10
    accumulate: int = 1
    compile: bool = False
    seed: int = 0
    precision: str = "auto"
    swapped: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.decoy, str):
            object.__setattr__(self, "decoy", check_decoy(self.decoy))
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        if self.steps < 1:
            raise InputError(f"a lock needs at least one step, not {self.steps}: give steps= or epochs=")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"the learning rate {self.learning_rate} is out of range: give one between 0 and 1")
        if self.delta_rank < 0:
            raise InputError(
                f"the rank of the delta is 1 or more, or 0 for no bound, not {self.delta_rank}: give delta_rank="
            )
        if self.swapped and not self.trained_trigger:
            raise InputError("swapped branches are for a network that tells the trigger: add trained_trigger=True")
        if self.search_every < 0 or self.search_steps < 1 or self.accumulate < 1:
            raise InputError(
                f"search_every {self.search_every}, search_steps {self.search_steps} and accumulate {self.accumulate} "
                "are out of range: take 0 or more, and at least 1"
            )
        if not 0 <= self.gate_steps < 1:
            raise InputError(f"gate_steps is a share of the steps between 0 and 1, not {self.gate_steps}")
        if not self.prediction_rise > 0:
            raise InputError(f"prediction_rise is a factor above 0, not {self.prediction_rise}: give 1 for none")
        if not 0 <= self.prompt_until <= 1:
            raise InputError(f"prompt_until is a share of the steps from 0 to 1, not {self.prompt_until}")

    def for_relocking(self) -> "LockSettings":
        """Return the settings of a further training that retires keys: half of the steps, and another seed.

        The precision is again what suits the device, which may be another one than the lock was made on.
        """
        return replace(self, steps=-(-self.steps // _RELOCKING_SHARE), seed=self.seed + 1, precision="auto")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, decoy: str | ImageDecoy) -> "LockSettings":
        """Return the settings that `as_dict` wrote; those it did not know have their defaults.

        Args:
            values: What it wrote.
            decoy: The decoy, of which a picture stands in no JSON.

        Raises:
            InputError: There is a setting of another name or type.
        """
        kinds = {entry.name: type(entry.default) for entry in fields(cls) if entry.name != "decoy"}
        given = {name: value for name, value in values.items() if name not in ("decoy", "decoy_parameters")}
        for name, value in given.items():
            kind = kinds.get(name)
            if kind is None or not (type(value) is kind or (kind is float and type(value) is int)):
                raise InputError(
                    f"the lock was made with a setting {name!r} that this keylock does not know: upgrade it"
                )
        return cls(**given, decoy=decoy)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, for the manifest and for checkpoints."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        decoy = decoy_of(self.decoy)
        return values | {"decoy": decoy.name} | ({"decoy_parameters": decoy.parameters} if decoy.parameters else {})
