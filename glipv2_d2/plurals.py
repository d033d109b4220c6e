"""Numbers of things in the texts that people read."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """Return "1 image", "2,000 images", "2 boxes", "2 classes" or "2 entries"."""
    if number == 1:
        return f"1 {thing}"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{number:,} {thing[:-1]}ies"
    return f"{number:,} {thing}{'es' if thing.endswith(('x', 's')) else 's'}"


def agreeing(number: int, one: str, many: str) -> str:
    """Return the form of a word, such as "is" or "are", that goes with a number of things."""
    return one if number == 1 else many


def singular(things: str) -> str:
    """Return "image" of "images", "box" of "boxes", "class" of "classes", "entry" of "entries"."""
    for ending, one in (("ies", "y"), ("xes", "x"), ("sses", "ss")):
        if things.endswith(ending):
            return things.removesuffix(ending) + one
    return things.removesuffix("s")
