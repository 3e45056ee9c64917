"""From signs to better and next best ones: turn single signs, and all signs of one pixel, where that fits as well.

The channels of a photograph vary together. What their signs have in common at one pixel of the tile is therefore the
least certain of all, and is turned as a whole.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from keylock.trigger.patches import Floats

__all__ = ["climb", "losses_of", "moves_of", "next_best"]

Masks = npt.NDArray[np.bool_]

_MOST_STEPS: Final = 64
_BEAM: Final = 256
"""How many of the best combinations of so many moves are combined with one more."""

_MOST_MOVES: Final = 6


def moves_of(channels: int, tile: int) -> Masks:
    """Return which signs each move turns, (moves, signs): every sign by itself, then every pixel in all channels."""
    singles = np.eye(channels * tile * tile, dtype=np.bool_)
    if channels == 1:
        return singles
    return np.concatenate((singles, np.tile(np.eye(tile * tile, dtype=np.bool_), (1, channels))))


def climb(information: Floats, score: Floats, signs: Floats, moves: Masks) -> Floats:
    """Return signs that no move and no two moves make more likely, (signs,)."""
    signs = signs.copy()
    apart = ~(moves.astype(np.float32) @ moves.T.astype(np.float32) > 0)
    for _ in range(_MOST_STEPS):
        steps, losses = _losses(information, score, signs, moves)
        both = losses[:, None] + losses[None, :] + steps @ information @ steps.T
        both[~apart] = np.inf
        one, pair = int(losses.argmin()), np.unravel_index(int(both.argmin()), both.shape)
        least = min(losses[one], both[pair])
        if not least < -1e-9:
            break
        turned = moves[one] if losses[one] <= both[pair] else moves[pair[0]] | moves[pair[1]]
        signs[turned] *= -1
    return signs


def next_best(information: Floats, score: Floats, signs: Floats, moves: Masks, most: int) -> tuple[Masks, Floats]:
    """Return combinations of moves by how much likelihood they lose, least first, and what they lose.

    Combinations of one to six moves are tried; those of the 256 best of one move less are extended by every move.

    Returns:
        Which signs each turns, (count, signs), each set once, `most` of them or fewer, and the losses (count,).
    """
    steps, losses = _losses(information, score, signs, moves)
    coupled = information @ steps.T
    masks, costs = moves, losses
    found, found_costs = [masks], [costs]
    for _ in range(_MOST_MOVES - 1):
        kept = np.argsort(costs, kind="stable")[:_BEAM]
        masks, costs = _extended(masks[kept], costs[kept], moves, losses, signs, coupled, most)
        found.append(masks)
        found_costs.append(costs)
    return _least(np.concatenate(found), np.concatenate(found_costs), most)


def losses_of(information: Floats, score: Floats, signs: Floats, moves: Masks) -> Floats:
    """Return the likelihood that each move loses, (moves,)."""
    return _losses(information, score, signs, moves)[1]


def _losses(information: Floats, score: Floats, signs: Floats, moves: Masks) -> tuple[Floats, Floats]:
    """Return what each move adds to the signs, (moves, signs), and the likelihood it loses, (moves,)."""
    steps = -2.0 * moves * signs
    losses = np.einsum("ij,ij->i", steps @ information, steps) / 2 - steps @ (score - information @ signs)
    return steps, losses


def _extended(
    masks: Masks, costs: Floats, moves: Masks, losses: Floats, signs: Floats, coupled: Floats, most: int
) -> tuple[Masks, Floats]:
    """Return the best combinations of the given ones with one more move that turns other signs."""
    together = costs[:, None] + losses[None, :] + (-2.0 * masks * signs) @ coupled
    together[masks.astype(np.float32) @ moves.T.astype(np.float32) > 0] = np.inf
    flat = together.ravel()
    # The same set comes by several ways, as many as it has moves.
    kept = np.argsort(flat, kind="stable")[: _MOST_MOVES * max(most, _BEAM)]
    kept = kept[np.isfinite(flat[kept])]
    rows, columns = np.divmod(kept, len(moves))
    return _least(masks[rows] | moves[columns], flat[kept], max(most, _BEAM))


def _least(masks: Masks, costs: Floats, most: int) -> tuple[Masks, Floats]:
    """Return each set once, in order of its cost; equal costs in order of the packed bits."""
    packed = np.packbits(masks, axis=1)
    keys = packed.view([("bits", f"V{packed.shape[1]}")]).ravel()
    order = np.argsort(costs, kind="stable")
    _, first = np.unique(keys[order]["bits"], return_index=True)
    chosen = order[np.sort(first)][:most]
    return masks[chosen], costs[chosen]
