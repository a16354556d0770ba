"""Names that somebody may have misspelt."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_NAME = 64
"""Characters that are compared: more are no name, and comparing takes the square of them."""

_LIKE = 0.66
"""What two names are to have in common (difflib): two letters of three, where two are swapped."""


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if any is near."""
    from difflib import get_close_matches

    # Two dashes that all options begin with would make any short two of them alike.
    bare = {one.lstrip("-"): one for one in known}
    found = get_close_matches(name.lstrip("-")[:_MAX_NAME], list(bare), n=1, cutoff=_LIKE)
    return bare[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that isn't known: the nearest one that is, else all of them."""
    known = list(known)
    found = near(name, known)
    return f"did you mean {found}?" if found else f"there are: {', '.join(known)}"
