"""What a comparison found, and how it is shown: JSON, a table, Markdown, a plot.

Bars are linear: they show how much. (A logarithmic bar has no honest beginning: its length depends on where the axis
starts.) The small ones can still be read, because every bar has its figure beside it.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

OURS = "sharded_wf"
COLOURS = {"bare loop": "#b8b8b8", OURS: "#1f6f5c"}
COLOUR_PEER = "#c97b3d"
INCHES_PER_BAR = 0.36
RATE_LABEL = "started and finished per second"
EXTRA = "sharded-wf[bench-peers]"
HOW_COUNTED = (
    "Counted in each contender's own tables, by its own times, after its processes were killed: the smaller one of "
    "what was started and what was finished within the window. Clients run ahead by one second of work, at least by "
    "1,000 and at most by 30,000 workflows (the bare loop: by 30,000)."
)


class Measured(msgspec.Struct, frozen=True):
    """One window of one contender."""

    contender: str
    steps: int
    round: int
    seconds: float
    started: int
    finished: int
    per_second: float
    """The smaller one of started and finished within the window, by its own tables, per second."""


class Described(msgspec.Struct, frozen=True):
    """A contender, as the report introduces it."""

    name: str
    version: str
    unit: str
    configuration: dict[str, Any]
    not_like_for_like: str


class Comparison(msgspec.Struct, frozen=True):
    """A whole run."""

    machine: dict[str, str]
    postgres: dict[str, str]
    seconds: float
    rounds: int
    executors: int
    slots: int
    steps: tuple[int, ...]
    contenders: tuple[Described, ...]
    left_out: tuple[str, ...]
    """Names of those that are not installed."""
    failed: tuple[str, ...]
    """What went wrong, one sentence for each window that gave no figure."""
    measured: tuple[Measured, ...]


class Cell(msgspec.Struct, frozen=True):
    """A contender's rate at one number of steps: the median of its rounds, and their span."""

    contender: str
    steps: int
    median: float
    lowest: float
    highest: float
    times_slower: float | None
    """How many times faster sharded_wf is; None where it was not measured."""


def rates_of(comparison: Comparison, contender: str, steps: int) -> list[float]:
    return [one.per_second for one in comparison.measured if (one.contender, one.steps) == (contender, steps)]


def cells(comparison: Comparison) -> list[Cell]:
    """One for each contender and number of steps that was measured."""
    found: list[Cell] = []
    for steps in comparison.steps:
        ours = rates_of(comparison, OURS, steps)
        for contender in comparison.contenders:
            rates = rates_of(comparison, contender.name, steps)
            if not rates:
                continue
            median = statistics.median(rates)
            slower = statistics.median(ours) / median if ours and median else None
            found.append(Cell(contender.name, steps, median, min(rates), max(rates), slower))
    return found


def show_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def rows(comparison: Comparison) -> list[list[str]]:
    """The table's rows: name, version, then a rate and a ratio for each number of steps; a dash where it has none."""
    by_place = {(cell.contender, cell.steps): cell for cell in cells(comparison)}
    table: list[list[str]] = []
    for contender in comparison.contenders:
        row = [contender.name, contender.version]
        for steps in comparison.steps:
            cell = by_place.get((contender.name, steps))
            row.append(show_rate(cell.median) if cell else "–")
            row.append(f"{1 / cell.times_slower:.3f}" if cell and cell.times_slower else "–")
        table.append(row)
    return table


def header(comparison: Comparison) -> list[str]:
    names = ["", "version"]
    for steps in comparison.steps:
        names += [f"{steps} steps /s" if steps != 1 else "1 step /s", f"÷ {OURS}"]
    return names


def make_table(comparison: Comparison) -> Table:
    """For the terminal."""
    table = Table(title=f"Workflows (queues: jobs) {RATE_LABEL}")
    for number, name in enumerate(header(comparison)):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in rows(comparison):
        table.add_row(*row, style="bold" if row[0] == OURS else None)
    return table


def markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    align = ["---" if number < 2 else "---:" for number in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in [head, align, *body]]


def make_markdown(comparison: Comparison) -> str:
    """The report. Everything that a reader needs to doubt it is in it."""
    one = comparison
    lines = [
        "# sharded_wf beside others",
        "",
        f"Workflows (queues: jobs) {RATE_LABEL}, on one Postgres server, {one.executors} executor or worker processes "
        f"each, {one.seconds:g} s a window, "
        + (f"the median of {one.rounds} alternating rounds." if one.rounds > 1 else "one round."),
        "",
        *markdown_table(header(one), rows(one)),
        "",
        HOW_COUNTED,
        "",
        "## Where it is not like for like",
        "",
        *(f"- **{c.name}**: {c.not_like_for_like}" for c in one.contenders if c.not_like_for_like),
        *(f"- **{name}** is left out: it is not installed (`pip install '{EXTRA}'`)." for name in one.left_out),
        *(f"- **Failed**: {sentence}" for sentence in one.failed),
        "",
        "## Configuration",
        "",
        *(
            f"- **{c.name} {c.version}**: " + ", ".join(f"{key} = {value}" for key, value in c.configuration.items())
            for c in one.contenders
        ),
        f"- **sharded_wf and the bare loop**: {one.slots} slots on one shard",
        "",
        "## Conditions",
        "",
        *(f"- {key}: {value}" for key, value in (one.machine | one.postgres).items()),
        "",
        "## Every window",
        "",
        *markdown_table(
            ["contender", "steps", "round", "started", "finished", "per second"],
            [
                [w.contender, *(f"{n:,}" for n in (w.steps, w.round + 1, w.started, w.finished, round(w.per_second)))]
                for w in one.measured
            ],
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def draw(comparison: Comparison, file: Path) -> None:
    """The plot, as PNG. Needs matplotlib (extra ``bench``)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = cells(comparison)
    shown = [(steps, [cell for cell in found if cell.steps == steps]) for steps in comparison.steps]
    shown = [(steps, bars) for steps, bars in shown if bars]
    counts = [len(bars) for _, bars in shown] or [1]
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(counts) + INCHES_PER_BAR * sum(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    # One scale for all panels: more steps cost more, and that is to be seen.
    axes: Any = figure.subplots(len(counts), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": counts})
    right = max((cell.highest for cell in found), default=1.0) * 1.14
    for axis, (steps, bars) in zip(axes[:, 0], shown, strict=False):
        draw_panel(axis, steps, bars, {one.name: one.unit for one in comparison.contenders}, right)
    if comparison.rounds > 1:
        axes[-1, 0].set_xlabel(f"median of {comparison.rounds} rounds; line: lowest to highest", fontsize=9)
    figure.suptitle(f"Workflows (queues: jobs) {RATE_LABEL}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(file, dpi=150)


def draw_panel(axis: Any, steps: int, bars: list[Cell], units: dict[str, str], right: float) -> None:
    places = range(len(bars))
    axis.barh(places, [bar.median for bar in bars], 0.68, color=[COLOURS.get(b.contender, COLOUR_PEER) for b in bars])
    for place, bar in zip(places, bars, strict=True):
        if bar.highest > bar.lowest:
            axis.plot([bar.lowest, bar.highest], [place, place], color="#333333", linewidth=1.2)
        axis.text(max(bar.median, bar.highest) + right * 0.008, place, show_rate(bar.median), va="center", fontsize=9)
    axis.set_yticks(
        list(places), [f"{bar.contender} (jobs)" if units[bar.contender] == "jobs" else bar.contender for bar in bars]
    )
    axis.invert_yaxis()
    axis.set_xlim(0, right)
    axis.xaxis.set_major_formatter(lambda rate, _: f"{rate:,.0f}")
    axis.tick_params(axis="x", labelsize=8, colors="#666666")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.set_title("1 step" if steps == 1 else f"{steps} steps", loc="left", fontsize=10)
