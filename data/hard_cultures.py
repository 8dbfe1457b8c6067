"""Invented cultures made harder, so that methods differ: 64 training cultures, 6 facets stated.

With 64 cultures instead of 256 a method can learn by heart which culture is meant instead of
reading its description, and a description that states six facets instead of four asks for more at
once. All else is as in data/cultures.py.
"""

from data import Data, cultures


def load(path: str | None, seed: int, contexts: int = 64) -> Data:
    """Like `cultures.load`, whose errors it raises."""
    return cultures.load(path, seed, contexts, stated=6, name="hard_cultures")
