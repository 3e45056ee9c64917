"""The rivals: one module for each, with the contract of `contract.Rival`."""

from rivals.bare import (
    BareCaptum,
    BareCaptumBfloat16,
    BareCaptumTargetGiven,
    BareCompiled,
    BareCompiledBfloat16,
    BareOnnx,
)
from rivals.contract import TASKS, Rival
from rivals.lit import CaptumLitServe, CaptumLitServeBfloat16
from rivals.ml import CaptumMLServer, CaptumMLServerBfloat16
from rivals.own import Keylock, KeylockAuto, KeylockInt8, KeylockUnlicensed
from rivals.plain import CaptumGrpc

__all__ = ["RIVALS", "TASKS", "Keylock", "KeylockAuto", "KeylockInt8", "KeylockUnlicensed", "Rival"]

RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        BareCaptum,
        BareCaptumBfloat16,
        BareCaptumTargetGiven,
        BareCompiled,
        BareCompiledBfloat16,
        CaptumLitServe,
        CaptumLitServeBfloat16,
        CaptumMLServer,
        CaptumMLServerBfloat16,
        CaptumGrpc,
        BareOnnx,
        Keylock,
        KeylockUnlicensed,
        KeylockInt8,
        KeylockAuto,
    )
}
"""By name, in the order of the tables."""
