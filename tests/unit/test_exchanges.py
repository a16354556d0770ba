"""The recorded exchanges: whole, many enough, and fit to be shown."""

from __future__ import annotations

import re
from collections import Counter

from tests.exchanges.exchange import FOLDER, listed, statuses
from tests.exchanges.record import SERVERS

README = (FOLDER / "README.md").read_text()


def test_each_file_is_in_the_list_and_the_other_way_round() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.txt")}

    assert Counter(row["file"] for row in listed()) == Counter(files)
    for row in listed():
        assert row["metadata"] is None or (FOLDER / row["metadata"]).is_file()


def test_each_cause_of_the_table_is_there_and_no_other() -> None:
    table = README.partition("## Causes")[2].partition("\n## ")[0]
    causes = {word for line in re.findall(r"(?m)^\| (`.*?) \|", table) for word in named(line)}

    assert {row["cause"] for row in listed()} == {*causes, None}


def test_there_are_enough_of_them_and_of_each_server() -> None:
    broken = [row for row in listed() if row["cause"]]
    servers = Counter(row["file"].partition("/")[0] for row in broken)

    assert len(broken) >= 40
    assert len(listed()) - len(broken) >= 15
    assert set(servers) == {server.replace("_", "-") for server in SERVERS}
    assert min(servers.values()) >= 6


def named(line: str) -> list[str]:
    return re.findall(r"`(\w+)`", line)


def test_what_was_only_read_names_its_source() -> None:
    for row in listed():
        assert (row["run"] is True) == ("source" not in row), row["file"]


def test_each_output_has_a_request_and_its_response() -> None:
    for row in listed():
        output = (FOLDER / row["file"]).read_text()
        assert statuses(output), row["file"]
        assert re.search(r"(?m)^> (GET|POST|DELETE) \S+ HTTP/", output), row["file"]


def test_no_output_tells_of_the_machine_that_made_it() -> None:
    for path in FOLDER.glob("[!_]*/*.*"):
        assert not re.search(r"/(?:home|root|tmp|work|Users)\b", path.read_text()), path
