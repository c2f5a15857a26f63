"""What the three story tasks share: children, openings, formats."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from catchment.capabilities.packs._draw import pick, words
from catchment.capabilities.tasks import Format

FORMATS = (
    Format("plain"),
    Format("story", "Story: {prompt}"),
    Format("once", "This is a little story.\n\n{prompt}"),
)
GIRLS = words("Lily Mia Anna Sue Lucy Emma Sara Amy Jane Molly Ella Kate")
BOYS = words("Tom Tim Ben Max Sam Jack Bob Leo Joe Fred Mark Billy")
OPENINGS = (
    "Once upon a time, there was a little {child} named {n}.",
    "Once there was a {child} called {n}.",
    "{n} was a little {child}. Everyone loved {n}.",
    "One day, a {child} named {n} was at home.",
    "There was a small {child} named {n}. {n} lived with {his} mom.",
    "There was {n}. {n} was three years old.",
    "One day, {n} was with {his} mom.",
    "Once upon a time, a {child} named {n} lived in a small house.",
)


@dataclass(frozen=True)
class Child:
    """A child and the words for it."""

    name: str
    girl: bool

    def tell(self, text: str) -> str:
        """Fill ``{n}``, ``{child}``, ``{he}``, ``{He}``, ``{his}``, ``{His}`` and ``{him}``."""
        he, his, him = ("she", "her", "her") if self.girl else ("he", "his", "him")
        words = {"n": self.name, "child": "girl" if self.girl else "boy", "he": he, "his": his, "him": him}
        return text.format(He=he.capitalize(), His=his.capitalize(), **words)


def child(rng: Random) -> Child:
    """A girl or a boy, equally often."""
    girl = pick(rng, (True, False))
    return Child(pick(rng, GIRLS if girl else BOYS), girl)
