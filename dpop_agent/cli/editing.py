"""`config edit`: on a private copy, which is checked before it is put in place."""

from __future__ import annotations

import os
import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, output, replacing
from dpop_agent.errors import Cancelled, ConfigurationError, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dpop_agent.cli.replacing import Check

EDITORS = ("sensible-editor", "vi", "nano")
"""Where neither $VISUAL nor $EDITOR names one: the first that is there."""

_FAILED = "the configuration stays as it was"


def add_edit(verbs: arguments.Verbs, check: Check) -> None:
    """`config edit`."""
    arguments.add_verb(
        verbs,
        "edit",
        "Open it in your editor; it is checked before it is put in place",
        lambda args: _edit(args, check),
        "The editor is $VISUAL, else $EDITOR, else one that is here.",
    )


def _edit(args: Namespace, check: Check) -> int:
    import shutil
    import tempfile

    path = paths.config_file()
    before = config.read(path)
    editor = _editor()
    folder = tempfile.mkdtemp(prefix="dpop-agent-")
    copy = os.path.join(folder, "config.toml")
    try:
        paths.write_new(copy, [before.encode()])
        text = _edited(editor, copy, before, check)
        if text != before:
            with replacing.locked(path):
                replacing.replace(path, before, text)
    except BaseException as e:
        if not _differs(copy, before):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        left = _what_is_left(copy, path)
        if isinstance(e, DPoPAgentError):
            e.hint = f"{e.hint}; {left}" if e.hint else left
        else:
            print(output.plain(left), file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        output.print_json({"path": path, "changed": text != before})
    elif text == before:
        print(
            output.plain(f"nothing was changed in {path}")
            + "\nif your editor is still open, have it wait: EDITOR='code --wait' dpop-agent config"
            " edit"
        )
    else:
        print(output.plain(f"wrote {path}") + f"\n{replacing.NEXT}")
    return 0


def _what_is_left(copy: str, path: str) -> str:
    from shlex import quote

    return (
        f"what you wrote is in {copy}: correct it there, then: DPOP_AGENT_CONFIG={quote(copy)} "
        f"dpop-agent config check && cp {quote(copy)} {quote(path)}"
    )


def _editor() -> list[str]:
    """The words of the command that a file's path is added to.

    Raises:
        ConfigurationError: there is none.
    """
    import shlex
    import shutil

    for name in ("VISUAL", "EDITOR"):
        if not os.environ.get(name, "").strip():
            continue
        try:
            words = shlex.split(os.environ[name])
        except ValueError as e:
            raise ConfigurationError(
                f"{name} can't be understood: a quote in it isn't closed",
                hint=f"correct it, as in {name}='code --wait'",
            ) from e
        if shutil.which(words[0]) is None:
            raise ConfigurationError(
                f"there is no program {words[0]!r}, which {name} names",
                hint=f"install it, or set {name} to another editor",
            )
        return words
    for program in EDITORS:
        if shutil.which(program):
            return [program]
    raise ConfigurationError(
        "there is no editor: VISUAL and EDITOR name none, and there is neither "
        + " nor ".join(EDITORS),
        hint="set EDITOR to one",
    )


def _edited(editor: list[str], copy: str, before: str, check: Check) -> str:
    """What the user made of the copy: the same as before, or what was found sound."""
    while True:
        _run_editor(editor, copy)
        if not os.path.lexists(copy):
            raise ConfigurationError(
                f"your editor left no file; {_FAILED}", hint="save it under the name that it has"
            )
        text = config.read(copy)
        if text == before:
            return text
        try:
            replacing.require_sound(text, copy, before, check)
        except ConfigurationError as e:
            if not sys.stdin.isatty():
                raise
            output.report(e, as_json=False)
            if not _is_to_be_edited_again():
                raise Cancelled(_FAILED) from e
        else:
            return text


def _run_editor(editor: list[str], copy: str) -> None:
    import signal
    import subprocess

    # Ctrl-C is the editor's. A handler, for what is ignored here would be ignored there.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run([*editor, copy], check=False).returncode
    except OSError as e:
        raise ConfigurationError(
            f"{editor[0]} can't be run: {e.strerror}", hint="set EDITOR to another editor"
        ) from e
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        how = f"with status {status}" if status > 0 else f"by signal {-status}"
        raise ConfigurationError(f"{editor[0]} ended {how}; {_FAILED}", hint="try again")


def _is_to_be_edited_again() -> bool:
    print("Edit it again? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)  # their Ctrl-D left the question's line unended
    return answer.strip().lower() in ("", "y", "yes") and bool(answer)


def _differs(copy: str, before: str) -> bool:
    """Whether there is something in the copy that would be lost with it."""
    if not os.path.isfile(copy):  # what else an editor made of it may never end
        return False
    try:
        with open(copy, "rb") as file:
            return file.read() not in (before.encode(), b"")
    except OSError:
        return False
