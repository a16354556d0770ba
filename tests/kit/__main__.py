"""`python -m tests.kit`: the kit as a program, for clients in other languages.

It prints one line of JSON, `{"control": "http://127.0.0.1:…", "agent": "…/agent.sock"}`, and serves
until its standard input ends. README.md has what `control` answers.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kit.kit import Kit, Run


class Control:
    """What clients of other languages ask of the kit."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._runs: dict[int, Run] = {}
        self._numbers = itertools.count(1)

    def cases(self, _: dict[str, Any]) -> Any:
        return [{"name": name, "needs": case["needs"]} for name, case in self._kit.cases.items()]

    def begin(self, asked: dict[str, Any]) -> Any:
        number, run = next(self._numbers), self._kit.begin(self._kit.cases[asked["case"]])
        self._runs[number] = run
        return {"run": number, "case": run.case}

    def release(self, asked: dict[str, Any]) -> Any:
        self._runs[asked["run"]].release()
        return {}

    def end(self, asked: dict[str, Any]) -> Any:
        return {"faults": self._runs.pop(asked["run"]).end(asked["came"])}


def main() -> None:
    """Serve until standard input ends."""
    with Kit() as kit:
        control = Control(kit)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                does = {
                    f"/{each.__name__}": each
                    for each in (control.cases, control.begin, control.release, control.end)
                }
                try:
                    status, said = 200, does[self.path](asked)
                except KeyError as e:
                    status, said = 400, {"error": f"there is no {e}"}
                answer = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            where = {"control": f"http://127.0.0.1:{server.server_port}", "agent": kit.socket}
            print(json.dumps(where), flush=True)
            sys.stdin.read()
            server.shutdown()


if __name__ == "__main__":
    main()
