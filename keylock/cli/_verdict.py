"""What a bundle is worth, in a line: whose it is, and what was measured of its lock."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from keylock.bundle import Bundle

__all__ = ["Verdict", "verdict"]

# Below this a keyed map is another map than the reference's, to the eye too.
_MATCHES = 0.9


class Verdict(NamedTuple):
    """What a bundle is worth.

    Attributes:
        lock: What its figures say of its lock, in a word.
        text: All of it, in a line.
    """

    lock: Literal["holds", "leaks", "poor", "not measured"]
    text: str


def verdict(bundle: "Bundle", *, trusted: bool) -> Verdict:
    """Say in a line whether a bundle is whole and whose, and what its own figures say of its lock.

    A lock holds as measured where every keyed map matches the reference's (a correlation of 0.9 or more) and no keyless
    map tells more of it than the true map of another image does. That is what its vendor measured; what attacks find is
    in the report of an audit.

    Args:
        bundle: A verified bundle.
        trusted: Whether its issuer is trusted.
    """
    whose = "by an issuer you trust" if trusted else "by an issuer that was not checked"
    lock = _lock(bundle)
    return lock._replace(text=f"whole, signed {whose}; {lock.text}")


def _lock(bundle: "Bundle") -> Verdict:
    values = {figure.name: figure.value for figure in bundle.manifest.figures}
    names = [entry.name for entry in bundle.manifest.explainers if f"fidelity/{entry.name}" in values]
    if not names:
        return Verdict("not measured", "what the lock is worth was not measured")
    unlike = [name for name in names if values[f"fidelity/{name}"] < _MATCHES]
    leaking = [name for name in names if _leakage(values, name) > abs(values.get(f"chance/{name}", 0.0))]
    if unlike:
        worst = min(unlike, key=lambda name: values[f"fidelity/{name}"])
        fidelity = values[f"fidelity/{worst}"]
        return Verdict(
            "poor",
            f"the lock is poor: keyed maps differ from the reference, most with {worst} (correlation {fidelity:.3f})",
        )
    if leaking:
        worst = max(leaking, key=lambda name: _leakage(values, name))
        chance = abs(values.get(f"chance/{worst}", 0.0))
        return Verdict(
            "leaks",
            f"the lock leaks: keyless maps tell more than chance, most with {worst} (correlation "
            f"{_leakage(values, worst):.3f}, chance {chance:.3f})",
        )
    least = min(values[f"fidelity/{name}"] for name in names)
    most = max(_leakage(values, name) for name in names)
    return Verdict(
        "holds",
        f"the lock holds as measured: correlation with true maps at least {least:.3f} with the key, at most {most:.3f} "
        "without",
    )


def _leakage(values: Mapping[str, float], name: str) -> float:
    """Returns how much keyless maps tell; a map turned upside down tells as much."""
    return abs(values.get(f"leakage/keyless/{name}", 0.0))
