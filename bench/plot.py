"""The pictures. matplotlib is an extra (``pip install 'sharded-wf[bench]'``); without it there are none."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import Result

OURS, BARE, IDEAL = "#1f6f5c", "#9a9a9a", "#c9c9c9"
PARTS = {"postgres": "#336791", "executor": "#1f6f5c", "client": "#d59b3a"}
INK = "#333333"
DPI = 160


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def figure(columns: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """A figure and its axes side by side, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, columns, figsize=size, dpi=DPI, squeeze=False, layout="constrained")
    for one in axes[0]:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(INK)
        one.tick_params(colors=INK, labelsize=9)
        one.set_axisbelow(True)
        one.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    return made, axes[0]


def heading(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, color=INK, fontweight="bold")


def thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def save(made: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    made.savefig(path, facecolor="white")
    plt.close(made)


def draw_run(result: Result, path: Path) -> bool:
    """The rate over time beside the bare loop, and where the CPU time went; False without matplotlib."""
    if not available():
        return False
    from .report import title

    made, (rate, cpu) = figure(2, (9.5, 3.8))
    made.suptitle(title(result), fontsize=11, color=INK, x=0.01, ha="left")
    ends = [result.rates_every_seconds * number for number in range(len(result.rates) + 1)]
    rate.stairs(result.rates, ends, color=OURS, linewidth=2, baseline=None)
    rate.fill_between(ends, [*result.rates, result.rates[-1]], step="post", color=OURS, alpha=0.15)
    top = max(result.rates)
    if result.ceiling_workflows_per_second:
        top = max(top, result.ceiling_workflows_per_second)
        rate.axhline(result.ceiling_workflows_per_second, color=BARE, linestyle="--", linewidth=1.5)
        rate.annotate(
            f"bare loop {result.ceiling_workflows_per_second:,.0f}", (ends[-1], result.ceiling_workflows_per_second),
            xytext=(0, 4), textcoords="offset points", ha="right", fontsize=9, color="#6a6a6a",
        )  # fmt: skip
    rate.set_ylim(0, top * 1.15)
    rate.set_xlim(0, ends[-1])
    rate.set_xlabel("seconds", fontsize=9, color=INK)
    thousands(rate.yaxis)
    heading(rate, f"Workflows/s: {result.workflows_per_second:,.0f}")
    _draw_cpu(cpu, result)
    save(made, path)
    return True


def _draw_cpu(axes: Any, result: Result) -> None:
    used = result.cpu_us_per_workflow
    parts = [("Postgres", used.postgres, "postgres"), ("executors", used.executor, "executor")]
    parts.append(("clients", used.client, "client"))
    shown = [(name, value, PARTS[key]) for name, value, key in parts if value is not None]
    names = [name for name, _, _ in shown]
    values = [value for _, value, _ in shown]
    bars = axes.bar(names, values, color=[colour for _, _, colour in shown], width=0.55)
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3, fontsize=9, color=INK)
    axes.set_ylim(0, max([*values, 1.0]) * 1.18)
    heading(axes, "CPU µs per workflow")
