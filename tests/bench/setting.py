"""What all parts are given."""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import CannotMeasure, Figures
from tests.bench.revisions import Revision
from tests.emulators import missing
from tests.processes import Agent, Token, new_token

QUICK_ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """Where and how it is measured.

    Attributes:
        folder: for all that the parts write.
        revisions: the project as it is, and the one to compare it with, if any.
        quick: fewer rounds.
        figures: what was measured.
    """

    folder: Path
    revisions: list[Revision]
    quick: bool
    figures: Figures

    @property
    def this(self) -> Revision:
        """The project as it is."""
        return self.revisions[0]

    def rounds(self, usual: int) -> int:
        """How many rounds a part makes."""
        return max(usual // 5, QUICK_ROUNDS) if self.quick else usual

    def lacks(self, what: str, *packages: str) -> bool:
        """Whether packages are missing, and that something is left out for it."""
        lacking = missing(*packages)
        if lacking:
            print(f"left out: {what}; not here: {' '.join(lacking)}", file=sys.stderr)
        return bool(lacking)

    def new_folder(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def new_token(self, label: str = "dpop-agent") -> Token:
        """A PKCS#11 token of its own."""
        return new_token(self.new_folder() / "token", label)

    def serving(
        self, stack: ExitStack, revision: Revision, token: Token, config: Path | None = None
    ) -> Agent:
        """An agent with one key, `default`, until the stack is left; its log is shown on errors."""
        agent = revision.agent(token, self.new_folder() / "state", config)

        def close(kind: type[BaseException] | None, *_: object) -> None:
            with redirect_stdout(sys.stderr if kind else io.StringIO()):
                agent.close()

        stack.push(close)
        try:
            agent.start()
        except AssertionError as e:
            raise CannotMeasure(e) from e
        agent.create_key("default")
        return agent
