"""Invented cultures made hard enough that methods come apart: 64 training cultures and 6 facets in a description.

With a quarter of the cultures a method may learn by heart who is meant instead of reading what is said, and a
description that states more facets asks for more at once. All else is as in `data.cultures`.
"""

from data import Data, cultures


def load(path: str | None, seed: int, contexts: int = 64) -> Data:
    """As data.cultures.load."""
    return cultures.load(path, seed, contexts, stated=6, name="hard_cultures")
