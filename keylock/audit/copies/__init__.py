"""Attackers who ask about many changed copies of a picture, and make a map of whatever is answered.

An attacker is what is covered in each copy (`masks`), how copies are disguised (`disguises`), and how they are asked
about (`attackers`, `asking`). What is answered becomes a map by a way in `fits`.
"""

from keylock.audit.copies.asking import Copied, Pixels, ask_about
from keylock.audit.copies.attackers import ADAPTIVE, ATTACKERS, METHODS_OF, PLAIN, Attacker
from keylock.audit.copies.disguises import DISGUISES, Pictures
from keylock.audit.copies.fits import FITS, standardised
from keylock.audit.copies.masks import MASKS, Masks

__all__ = [
    "ADAPTIVE",
    "ATTACKERS",
    "DISGUISES",
    "FITS",
    "MASKS",
    "METHODS_OF",
    "PLAIN",
    "Attacker",
    "Copied",
    "Masks",
    "Pictures",
    "Pixels",
    "ask_about",
    "standardised",
]
