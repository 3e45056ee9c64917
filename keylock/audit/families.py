"""Kinds of attacks in words: what a report calls them, and what to do about one that gets through."""

from typing import NamedTuple

from keylock.auditreport.record import Finding

__all__ = ["FAMILIES", "SEALED_DELTA", "Family", "family_of"]

_KEEP_WEIGHTS = (
    "Keep the weights: serve the model, and give the bundle to nobody who must not see true maps. Whoever has the "
    "weights and can train gets closer than this audit did, with more time."
)
_REFUSE = (
    "Start the server with --unlicensed refuse. Whoever has no license then gets predictions alone, and no maps to "
    "learn from."
)
_LEAK = "Train again with more steps: keyless maps still have something in common with the true ones."
_PREDICTIONS = (
    "Name a method that reads predictions alone in --explainers of the training (all has occlusion, RISE, LIME and "
    "KernelSHAP), which misleads such methods in part. What they show beyond that cannot be locked as long as "
    "predictions are right and open to everybody; serve with query_guard = limit, so that few near copies of a "
    "picture are answered."
)
_IMITATION = (
    "Limit how many predictions a caller gets, in front of the server, which limits near copies of a picture alone: a "
    "model that was taught by yours explains itself, and no lock reaches it."
)
_OTHER_EXPLAINERS = "Name the explainer that came through, or one of its kind, in --explainers of the training."
_DIRECTIONS = (
    "Train longer, and on rows with strong directions cut (direction_dropout_weight above 0): what opens the lock "
    "lies in few directions of the weights."
)
SEALED_DELTA = "Lock without --trained-trigger: a trigger that the network tells can be searched for in its weights."
"""Said of a lock whose network itself tells the trigger."""

_BASE = "Do not lock a model that others have, or whose parent is public: they explain that one."
_SERVICE = "Do not serve before the checks under Service are good."


class Family(NamedTuple):
    """A kind of attack.

    Attributes:
        name: In a few words.
        advice: What to do where it gets through, in sentences.
    """

    name: str
    advice: tuple[str, ...] = ()


FAMILIES = {
    "average": Family("averaged keyless maps", (_REFUSE, _LEAK)),
    "keyless": Family("keyless maps", (_REFUSE, _LEAK)),
    "other_classes": Family("maps of other classes subtracted", (_REFUSE, _LEAK)),
    "key_guess": Family("guessed keys", (_REFUSE,)),
    "key_climb": Family("a key climbed to by asking", (_REFUSE,)),
    "predictions": Family("masked images and their predictions", (_PREDICTIONS,)),
    "near_copies": Family("near copies through the query guard", (_PREDICTIONS,)),
    "surrogate": Family("a copy taught by predictions", (_IMITATION,)),
    "distillation": Family("a copy distilled from the weights", (_KEEP_WEIGHTS,)),
    "base_model": Family("the public parent model", (_BASE,)),
    "explainers": Family("explainers that were not locked", (_OTHER_EXPLAINERS, _KEEP_WEIGHTS)),
    "class_evidence": Family("the evidence of each class", (_OTHER_EXPLAINERS, _KEEP_WEIGHTS)),
    "aise": Family("spots kept and cut out of images, on the weights", (_PREDICTIONS, _KEEP_WEIGHTS)),
    "reader": Family("a reader learned from examples", (_LEAK, _KEEP_WEIGHTS)),
    "captum": Family("methods of Captum", (_OTHER_EXPLAINERS, _KEEP_WEIGHTS)),
    "pytorch_grad_cam": Family("methods of pytorch-grad-cam", (_OTHER_EXPLAINERS, _KEEP_WEIGHTS)),
    "activations": Family("other activations", (_KEEP_WEIGHTS,)),
    "tangent_space": Family("gradients along the data", (_OTHER_EXPLAINERS, _KEEP_WEIGHTS)),
    "key_search": Family("a key searched by gradient", (SEALED_DELTA, _KEEP_WEIGHTS)),
    "low_rank": Family("directions of the weights cut or corrected", (_DIRECTIONS, _KEEP_WEIGHTS)),
    "batch_norm": Family("normalisation put back", (_KEEP_WEIGHTS,)),
    "fine_tune": Family("training on", (_KEEP_WEIGHTS,)),
    "fine_prune": Family("sleeping channels cut, then training on", (_KEEP_WEIGHTS,)),
    "quantise": Family("rounded weights", (_KEEP_WEIGHTS,)),
    "prune": Family("small weights cut", (_KEEP_WEIGHTS,)),
    "weight_noise": Family("noise on the weights", (_KEEP_WEIGHTS,)),
    "pairs": Family("true maps of other images", (_KEEP_WEIGHTS,)),
    "detect": Family("telling that maps are locked"),
    "service": Family("the running service", (_SERVICE,)),
}
"""Every family of attacks, by the first part of their names."""


def family_of(finding: Finding) -> Family:
    """Return the family of a finding; one that is not in the table is called by its own name."""
    name = finding.attack.partition("/")[0]
    return FAMILIES.get(name, Family(name.replace("_", " ")))
