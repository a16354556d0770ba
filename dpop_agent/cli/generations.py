"""Which generation a verb means."""

from __future__ import annotations

from dpop_agent.cli import arguments, calls
from dpop_agent.cli.listing import name
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.cli.calls import Key

LIVE = ("staged", "active", "draining", "retired")
FITTING = {
    "activate": ("staged", "draining", "retired"),
    "suspend": LIVE,
    "resume": ("suspended",),
    "destroy": (*LIVE, "suspended", "compromised"),
}
"""The states of the generations that a verb takes, and so of those that a bare name can mean."""

MAX_CHOICES = 8
"""Generations named where a bare name could mean several: the newest."""


def add_generation(parser: arguments.Parser) -> None:
    """`NAME@N`."""
    parser.add_argument(
        "key",
        metavar="NAME@N",
        type=arguments.generation,
        help="or NAME, if only one generation can be meant",
    )


def whole(result: dict[str, Any]) -> Key:
    """The key in a result, whose oldest generations are left out where a line would be too long."""
    key: Key = result["keys"][0]
    if key["generations"] and key["generations"][0]["generation"] == 1:
        return key
    return calls.the_key(key["key"], include_destroyed=True)


def chosen(verb: str, args: Namespace) -> dict[str, Any]:
    """The parameters that name the generation; the only one that fits, where no number is given."""
    key_name, number = args.key
    if number is None:
        number = the_only_one(verb, calls.the_key(key_name))
    return {"key": key_name, "generation": number}


def the_only_one(verb: str, key: Key) -> int:
    """The number of the one generation that a bare name can mean.

    Raises:
        ConfigurationError: none or several fit.
    """
    fitting = [g for g in key["generations"] if g["state"] in FITTING[verb]]
    if fitting and verb == "resume" and key.get("policy_lost"):  # the last one made was in use
        return int(fitting[-1]["generation"])
    if len(fitting) == 1:
        return int(fitting[0]["generation"])
    if fitting:
        raise ConfigurationError(
            f"the key {key['key']} has {len(fitting)} generations that could be meant",
            hint="name one: "
            + ", ".join(f"{name(key, g)} ({g['state']})" for g in fitting[-MAX_CHOICES:]),
        )
    raise ConfigurationError(
        f"the key {key['key']} has no generation to {verb}: none is {' or '.join(FITTING[verb])}",
        hint=f"see: dpop-agent key list {key['key']} --all",
    )
