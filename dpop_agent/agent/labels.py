"""The labels of objects in stores, which say whose generation each is should the ledger be lost."""

from __future__ import annotations

import re

from dpop_agent.protocol import KEY_NAME

_LABEL = re.compile(rf"dpop-agent ({KEY_NAME.pattern})@([1-9][0-9]{{0,5}})")
"""A generation's number has six digits at most: no key was ever rotated a million times."""


def label_of(name: str, number: int) -> str:
    """The label of a generation's objects."""
    return f"dpop-agent {name}@{number}"


def named_by(label: str) -> tuple[str, int] | None:
    """A key's name and a generation's number, as a label says them; None if it isn't ours."""
    found = _LABEL.fullmatch(label)
    return None if found is None else (found[1], int(found[2]))
