"""The figures of `proofs` as a picture, for docs/speed.md: dark on a light ground, anywhere.

matplotlib draws it; only `--plot` needs it.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.figures import P50, RATE, Column, Figures
from tests.bench.parts.proofs import (
    APART,
    CONNECTIONS,
    ONE,
    P11_KIT,
    PYJWT,
    SSH_AGENT,
    TOKEN,
    many,
)

OURS, SSH, OTHERS, PAPER, INK = "#1f6feb", "#bf5b04", "#8c959f", "#ffffff", "#24292f"


def plot(figures: Figures, name: str, path: Path) -> None:
    """Write the SVG.

    Args:
        name: the revision's, as the subjects have it.
    """
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "dpop-agent",  # the same figures give the same file
            "font.family": "sans-serif",
            "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
    figure = Figure(figsize=(9, 3.6), facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for axes in (left, right):
        axes.set_facecolor(PAPER)
        axes.spines[["top", "right"]].set_visible(False)
    _one_by_one(left, figures, name)
    _at_once(right, figures, name)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _median(figures: Figures, subject: str, measure: str) -> float:
    return statistics.median(figures.of(Column(subject, measure)))


def _one_by_one(axes: Axes, figures: Figures, name: str) -> None:
    rows = {
        "key in memory, PyJWT": (PYJWT, OTHERS),
        "PKCS#11 token alone": (TOKEN, OTHERS),
        "p11-kit remoting": (P11_KIT, OTHERS),
        "three processes that do\nnothing else": (APART, OTHERS),
        "dpop-agent": (f"{name}, {ONE}", OURS),
        "ssh-agent": (f"{SSH_AGENT}, {ONE}", SSH),
    }
    rows = {label: row for label, row in rows.items() if figures.of(Column(row[0], P50))}
    times = [_median(figures, subject, P50) for subject, _ in rows.values()]
    colors = [color for _, color in rows.values()]
    bars = axes.barh(list(rows), times, color=colors, height=0.65)
    axes.bar_label(bars, [f"{time:.0f} µs" for time in times], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(times) * 1.18)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("One at a time: time for each (median)", loc="left", fontsize=10)


def _at_once(axes: Axes, figures: Figures, name: str) -> None:
    ours = {1: f"{name}, {ONE}"} | {count: f"{name}, {many(count)}" for count in CONNECTIONS}
    theirs = {1: f"{SSH_AGENT}, {ONE}", 16: f"{SSH_AGENT}, {many(16)}"}
    for label, subjects, color in (("dpop-agent", ours, OURS), ("ssh-agent", theirs, SSH)):
        rates = {
            count: _median(figures, subject, RATE)
            for count, subject in subjects.items()
            if figures.of(Column(subject, RATE))
        }
        if rates:
            axes.plot(list(rates), list(rates.values()), "o-", color=color)
            _label(axes, label, 16, rates[16], -18, color)
    if figures.of(Column(TOKEN, RATE)):
        alone = _median(figures, TOKEN, RATE)
        axes.axhline(alone, color=OTHERS, linestyle="--")
        axes.set_ylim(top=alone * 1.15)
        _label(axes, "PKCS#11 token alone", 4, alone, 6, INK)
    axes.set_xscale("log", base=2)
    counts = [1, *CONNECTIONS]
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("connections that ask at the same time")
    axes.set_title("Many at once: signatures a second", loc="left", fontsize=10)


def _label(axes: Axes, text: str, x: float, y: float, above: float, color: str) -> None:
    place = (0, above)
    axes.annotate(text, (x, y), place, textcoords="offset points", ha="center", color=color)
