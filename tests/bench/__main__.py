"""Measures what the agent costs, beside what it is compared with, and judges it by `bars.py`.

Each part measures in rounds: in each round everything once, one after the other, beginning with
another each time. Ratios are of values of the same round. Medians are printed with the least and
the most; it ends non-zero when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import report
from tests.bench.figures import CannotMeasure, Figures
from tests.bench.parts import clients, keys, proofs, rest, seconds, signers, slow, starts
from tests.bench.revisions import checked_out, here
from tests.bench.setting import Setting
from tests.places import private_places

PARTS: dict[str, Callable[[Setting], None]] = {
    "proofs": proofs.measure,
    "clients": clients.measure,
    "slow": slow.measure,
    "signers": signers.measure,
    "keys": keys.measure,
    "starts": starts.measure,
    "rest": rest.measure,
    "seconds": seconds.measure,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run",
        description="Measure the agent beside what it is compared with. On a quiet machine: what "
        "others do at the same time is in the figures.",
        epilog="\n".join(
            ["parts:"]
            + [f"  {name:9} {sys.modules[part.__module__].__doc__}" for name, part in PARTS.items()]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="only these, of those below; without it all"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument(
        "--against",
        metavar="REV",
        help="measure that revision's proofs, starts and rest too, in the same rounds",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all values there")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw the figures of proofs as an SVG; needs matplotlib",
    )
    args = parser.parse_args()
    if args.plot and args.parts and "proofs" not in args.parts:
        parser.error("--plot draws the figures of the part proofs")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part}: {', '.join(PARTS)}")
    return args


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    figures, before, failed = Figures(), report.machine(), False
    with ExitStack() as stack:
        stack.enter_context(private_places())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpop-bench-")))
        revisions = [here()]
        if args.against:
            revisions.append(stack.enter_context(checked_out(args.against, folder)))
        setting = Setting(folder, revisions, args.quick, figures)
        for name in args.parts or PARTS:
            began, known = time.monotonic(), {*figures.values, *figures.derived}
            try:
                PARTS[name](setting)
            except CannotMeasure as e:
                print(f"\n{name}: {e}")
                failed = True
                continue
            print(
                f"\n{name}, {time.monotonic() - began:.0f} s: median of the rounds (least to most)"
            )
            report.print_subjects(figures, but=known)
            report.print_derived(figures, but=known)
    kept = report.print_bars(figures, all_parts=not args.parts)
    if args.json:
        found = report.as_json(figures, revisions, before)
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if args.plot and not failed:
        from tests.bench.plot import plot  # loads matplotlib, which is there for this alone

        plot(figures, setting.this.name, args.plot)
    return 0 if kept and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
