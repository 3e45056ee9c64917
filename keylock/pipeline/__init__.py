"""From data to a signed bundle: train or load the reference, lock it, measure it, compile it, publish it."""

from keylock.pipeline.evaluate import EvaluatePlan, Gallery, evaluate
from keylock.pipeline.plans import Issue, TrainOutcome, TrainPlan
from keylock.pipeline.publish import Publication, publish
from keylock.pipeline.retire import OwnBundle, Retirement, assist_retirement, read_lock, retire
from keylock.pipeline.train import assist, prepare_reference, train, train_for_keys

__all__ = [
    "EvaluatePlan",
    "Gallery",
    "Issue",
    "OwnBundle",
    "Publication",
    "Retirement",
    "TrainOutcome",
    "TrainPlan",
    "assist",
    "assist_retirement",
    "evaluate",
    "prepare_reference",
    "publish",
    "read_lock",
    "retire",
    "train",
    "train_for_keys",
]
