"""From data to a signed bundle: train or load the reference, lock it, measure it, compile it, publish it."""

from keylock.pipeline.evaluate import EvaluatePlan, Gallery, evaluate
from keylock.pipeline.forecast import Forecast, forecast
from keylock.pipeline.plans import Issue, TrainOutcome, TrainPlan
from keylock.pipeline.publish import Publication, publish
from keylock.pipeline.retire import OwnBundle, Retirement, assist_retirement, read_lock, retire
from keylock.pipeline.train import assist, prepare_reference, train, train_for_keys
from keylock.pipeline.trial import Trial, try_lock

__all__ = [
    "EvaluatePlan",
    "Forecast",
    "Gallery",
    "Issue",
    "OwnBundle",
    "Publication",
    "Retirement",
    "TrainOutcome",
    "TrainPlan",
    "Trial",
    "assist",
    "assist_retirement",
    "evaluate",
    "forecast",
    "prepare_reference",
    "publish",
    "read_lock",
    "retire",
    "train",
    "train_for_keys",
    "try_lock",
]
