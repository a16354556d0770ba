"""Names that somebody may have misspelt."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_NAME = 64
"""Characters that are compared: more are no name, and comparing takes the square of them."""


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if any is near."""
    from difflib import get_close_matches

    found = get_close_matches(name[:_MAX_NAME], list(known), n=1)
    return found[0] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that isn't known: the nearest one that is, else all of them."""
    known = list(known)
    found = near(name, known)
    return f"did you mean {found}?" if found else f"there are: {', '.join(known)}"
