"""The rivals: one module for each, with the contract of `contract.Rival`."""

from rivals.bare import BareCaptum, BareCaptumTargetGiven, BareCompiled, BareOnnx
from rivals.contract import TASKS, Rival
from rivals.lit import CaptumLitServe
from rivals.ml import CaptumMLServer
from rivals.own import Keylock, KeylockInt8, KeylockUnlicensed
from rivals.plain import CaptumGrpc

__all__ = ["RIVALS", "TASKS", "Keylock", "KeylockInt8", "KeylockUnlicensed", "Rival"]

RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        BareCaptum,
        BareCaptumTargetGiven,
        BareCompiled,
        CaptumLitServe,
        CaptumMLServer,
        CaptumGrpc,
        BareOnnx,
        Keylock,
        KeylockUnlicensed,
        KeylockInt8,
    )
}
"""By name, in the order of the tables."""
