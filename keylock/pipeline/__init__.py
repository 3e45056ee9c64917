"""From data to a signed bundle: train or load the reference, lock it, measure it, compile it, publish it."""

from keylock.pipeline.evaluate import EvaluatePlan, Gallery, evaluate
from keylock.pipeline.publish import Publication, publish
from keylock.pipeline.train import Issue, TrainOutcome, TrainPlan, assist, prepare_reference, train, train_for_keys

__all__ = [
    "EvaluatePlan",
    "Gallery",
    "Issue",
    "Publication",
    "TrainOutcome",
    "TrainPlan",
    "assist",
    "evaluate",
    "prepare_reference",
    "publish",
    "train",
    "train_for_keys",
]
