"""Model cards: what a bundle says of itself, as the `README.md` that the Hugging Face Hub and its tools read."""

from keylock.cards.card import CardTerms, write_card
from keylock.cards.header import header_of

__all__ = ["CardTerms", "header_of", "write_card"]
