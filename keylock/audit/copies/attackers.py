"""Attackers by near copies: how copies are made, how they are disguised, and how they are asked about."""

from dataclasses import dataclass
from typing import Final

from keylock.audit.copies.disguises import DISGUISES

__all__ = ["ADAPTIVE", "ATTACKERS", "METHODS_OF", "PLAIN", "Attacker"]


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """How copies of a picture are made and asked about.

    Attributes:
        summary: What it does, in one sentence.
        masks: A name in `MASKS`.
        disguise: A name in `DISGUISES`, or none.
        scores: Whether scores are asked for.
        labels: Whether labels are, where scores are refused or not asked for.
        shows_picture: Whether the picture itself is asked about first; otherwise its class is taken from its copies.
        batch: Copies in a call.
        windows: Over how many windows of the guard the copies are spread.
        flood: Unrelated pictures that are asked about before each call.
        calls_anew: Whether each call comes from another connection.
        learns: Whether disguises are made as strong as it takes to be answered, in place of `disguise`.
    """

    summary: str
    masks: str = "occlusion"
    disguise: str | None = None
    scores: bool = True
    labels: bool = True
    shows_picture: bool = True
    batch: int = 1
    windows: int = 1
    flood: int = 0
    calls_anew: bool = False
    learns: bool = False


METHODS_OF: Final = {"occlusion": "occlusion", "rise": "rise", "lime": "lime", "kernel_shap": "kernel_shap"}
"""By masks, the explainer that has such masks."""

_WAYS: Final = {
    "occlusion": "cover a patch at a time",
    "rise": "show it through smooth random masks",
    "lime": "show random segments of it",
    "kernel_shap": "show few segments of it or nearly all",
    "signs": "add random signs to every pixel",
}

PLAIN: Final[dict[str, Attacker]] = {
    **{masks: Attacker(masks=masks, summary=f"Ask about copies: {what}.") for masks, what in _WAYS.items()},
    **{
        f"{masks}_labels": Attacker(masks=masks, scores=False, summary=f"Ask for labels of copies alone: {what}.")
        for masks, what in _WAYS.items()
    },
}
"""Attackers who hide nothing, by name."""

_WORDS: Final = {
    "noise": "with noise on them",
    "shift": "moved",
    "exposure": "darker or lighter",
    "mix": "with other pictures laid over them",
    "turn": "turned and mirrored",
    "blur": "blurred",
    "jpeg": "compressed as JPEG",
    "zoom": "cut out and enlarged",
}

ADAPTIVE: Final[dict[str, Attacker]] = {
    **{
        name: Attacker(disguise=name, summary=f"Ask about copies with a patch covered, {_WORDS[name]}.")
        for name in DISGUISES
    },
    "rise_noise": Attacker(masks="rise", disguise="noise", summary="Ask about copies under smooth masks and noise."),
    "large_patches": Attacker(masks="halves", summary="Ask about copies of which a half, third or quarter is covered."),
    "pieces": Attacker(masks="pieces", summary="Ask about pieces that have nothing in common."),
    "batches": Attacker(batch=8, summary="Ask about copies in batches of eight."),
    "callers": Attacker(calls_anew=True, summary="Ask about each copy from another connection."),
    "exposure_labels": Attacker(
        disguise="exposure", scores=False, summary="Ask for labels of darker and lighter copies alone."
    ),
    "unseen": Attacker(shows_picture=False, summary="Ask about copies, and never about the picture itself."),
    "windows": Attacker(windows=4, summary="Ask about copies over four windows of the guard."),
    "flood": Attacker(flood=4, summary="Ask about four unrelated pictures before each copy, to fill the memory."),
    "learning": Attacker(
        learns=True,
        summary="Make noise, shift and blur as strong as it takes for copies to be answered, learning from refusals.",
    ),
    "learning_rise": Attacker(
        masks="rise", learns=True, summary="Learn from refusals in the same way, with smooth masks."
    ),
}
"""Attackers who hide what copies are copies of, or go around the guard, by name."""

ATTACKERS: Final[dict[str, Attacker]] = {**PLAIN, **ADAPTIVE}
"""Every attacker by near copies."""
