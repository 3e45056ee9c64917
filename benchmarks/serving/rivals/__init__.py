"""The rivals: one module for each, with the contract of `contract.Rival`."""

from rivals.bare import (
    BareCaptum,
    BareCaptumBfloat16,
    BareCaptumTargetGiven,
    BareCompiled,
    BareCompiledBfloat16,
    BareOnnx,
    BareOpenVINOXAI,
)
from rivals.contract import TASKS, Rival
from rivals.lit import CaptumLitServe, CaptumLitServeBfloat16
from rivals.ml import CaptumMLServer, CaptumMLServerBfloat16
from rivals.own import Keylock, KeylockAuto, KeylockBefore, KeylockInt8, KeylockUnlicensed
from rivals.plain import CaptumGrpc

__all__ = ["RIVALS", "TASKS", "Keylock", "KeylockAuto", "KeylockBefore", "KeylockInt8", "KeylockUnlicensed", "Rival"]

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
        BareOpenVINOXAI,
        BareOnnx,
        KeylockBefore,
        Keylock,
        KeylockUnlicensed,
        KeylockInt8,
        KeylockAuto,
    )
}
"""By name, in the order of the tables."""
