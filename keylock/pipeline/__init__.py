"""From data to a signed bundle: train or load the reference, lock it, measure it, compile it, publish it."""

from keylock.pipeline.evaluate import EvaluatePlan, Gallery, evaluate
from keylock.pipeline.publish import Publication, publish
from keylock.pipeline.train import TrainOutcome, TrainPlan, prepare_reference, train

__all__ = [
    "EvaluatePlan",
    "Gallery",
    "Publication",
    "TrainOutcome",
    "TrainPlan",
    "evaluate",
    "prepare_reference",
    "publish",
    "train",
]
