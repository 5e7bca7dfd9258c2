"""Where the time goes: CPU µs of Postgres, of the executors and of the client, for each thing that a workflow can do.

A feature's price is the difference of two closed loops whose workflows differ in that feature alone, each on new
servers; over a few rounds, the medians. Beside it stands the bare loop, which makes the same durable writes and does
nothing else: what we need more than it does is the engine's own price.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from sharded_wf.errors import ConfigError

from .bare import run_bare_loop
from .cluster import Shape, open_cluster
from .conditions import conditions_of
from .features import FEATURES, PREFIX, STEP, WORKFLOW, Feature
from .plot import INK, PARTS, available, figure, heading, save
from .report import conditions_lines, markdown_table, number
from .result import Cpu
from .run import Plan, Say, run
from .sampling import postmaster_of

SIDES = ("postgres", "executor", "client")
BARE = ((0, WORKFLOW), (1, STEP))
"""The bare loop's steps, and the name of what they stand for."""


class Price(msgspec.Struct, frozen=True):
    """What one use of a feature costs. ``over``: what it is the difference to; None: nothing. ``bare``: what it costs
    in the bare loop, where that has it."""

    name: str
    over: str | None
    cpu_us: Cpu
    bare_cpu_us: Cpu | None


class Attribution(msgspec.Struct, frozen=True):
    """What ``bench attribution`` found."""

    seconds: float
    rounds: int
    executors: int
    slots: int
    prices: tuple[Price, ...]
    holds: bool
    conditions: dict[str, dict[str, str]]


def chosen(names: Sequence[str]) -> list[Feature]:
    """The features of these names (all, of none), with those that they are more than. ``ConfigError`` lists all."""
    known = {feature.name: feature for feature in FEATURES}
    wanted = set(names or known)
    if unknown := wanted - known.keys():
        raise ConfigError(f"there is no feature {min(unknown)!r}; there are: {'; '.join(known)}")
    for feature in reversed(FEATURES):  # what a feature is more than stands before it
        if feature.name in wanted and feature.base is not None:
            wanted.add(feature.base)
    return [feature for feature in FEATURES if feature.name in wanted]


def measure(plan: Plan, rounds: int, names: Sequence[str], say: Say) -> Attribution:
    """``plan``: seconds of each window, slots, executors. Servers are always embedded ones: their CPU is counted."""
    features = chosen(names)
    found: dict[str, list[Cpu]] = {feature.name: [] for feature in features}
    bare: dict[str, list[Cpu]] = {name: [] for _, name in BARE}
    holds = True
    conditions: dict[str, dict[str, str]] = {}
    for turn in range(rounds):

        def say_here(text: str, turn: int = turn) -> None:
            say(f"round {turn + 1} of {rounds}: {text}")

        for steps, name in BARE:
            bare[name].append(_bare(plan, steps, say_here))
        for feature in features:
            one = Plan(
                f"{PREFIX}{feature.name}", 0, plan.seconds, plan.slots, executors=plan.executors, ceiling=False,
                backlog=feature.backlog,
            )  # fmt: skip
            with open_cluster(Shape(1, None, plan.slots)) as cluster:
                result = run(cluster, one, _named(say_here, feature.name))
                conditions = conditions or conditions_of(cluster.first)
            holds &= result.certificate.holds
            # (By the workflow that makes use of it, its children included.)
            found[feature.name].append(_times(result.cpu_us_per_workflow, feature.workflows))
    whole = {name: _medians(several) for name, several in found.items()}
    whole_bare = {name: _medians(several) for name, several in bare.items()}
    prices = tuple(price_of(feature, whole, whole_bare) for feature in features)
    return Attribution(plan.seconds, rounds, plan.executors, plan.slots, prices, holds, conditions)


def _named(say: Say, name: str) -> Callable[[str], None]:
    return lambda text: say(f"{name}: {text}")


def _bare(plan: Plan, steps: int, say: Say) -> Cpu:
    say(f"the bare loop with {steps} steps")
    with open_cluster(Shape(1, None, 1)) as cluster:
        answer = run_bare_loop(
            cluster.bare, seconds=plan.seconds, steps=steps, slots=plan.slots, executors=plan.executors,
            postmaster=postmaster_of(next(iter(cluster.servers.values()))),
        )  # fmt: skip
    return msgspec.convert(answer["cpu_us_per_workflow"], Cpu)


def _times(cpu: Cpu, factor: float) -> Cpu:
    return Cpu(*(None if value is None else value * factor for value in _sides(cpu)))


def _sides(cpu: Cpu) -> list[float | None]:
    return [getattr(cpu, side) for side in SIDES]


def _medians(several: Iterable[Cpu]) -> Cpu:
    columns = zip(*map(_sides, several), strict=True)
    return Cpu(*(statistics.median(value or 0.0 for value in column) for column in columns))


def _less(cpu: Cpu, base: Cpu | None, uses: int) -> Cpu:
    before = [0.0] * len(SIDES) if base is None else _sides(base)
    return Cpu(
        *(round(((one or 0.0) - (less or 0.0)) / uses, 1) for one, less in zip(_sides(cpu), before, strict=True))
    )


def price_of(feature: Feature, whole: dict[str, Cpu], bare: dict[str, Cpu]) -> Price:
    base = None if feature.base is None else whole[feature.base]
    bare_cpu = None
    if feature.name in bare:
        bare_cpu = _less(bare[feature.name], None if feature.base is None else bare[feature.base], feature.uses)
    return Price(feature.name, feature.base, _less(whole[feature.name], base, feature.uses), bare_cpu)


# --- shown ----------------------------------------------------------------------------------------------------------


def total(cpu: Cpu) -> float:
    return sum(value or 0.0 for value in _sides(cpu))


def table_rows(found: Attribution) -> tuple[list[str], list[list[str]]]:
    head = ["one more", "Postgres", "executors", "client", "in all", "bare loop"]
    rows = [
        [
            price.name,
            *(number(value, 1) for value in _sides(price.cpu_us)),
            number(total(price.cpu_us), 1),
            _bare_cell(price),
        ]
        for price in found.prices
    ]
    return head, rows


def _bare_cell(price: Price) -> str:
    return number(None if price.bare_cpu_us is None else total(price.bare_cpu_us), 1)


def conditions_text(found: Attribution) -> str:
    return (
        f"CPU µs (user and system) of one use, by difference of closed loops of {found.seconds:g} s, the medians of "
        f"{found.rounds} rounds; one embedded server, {found.slots} slots, {found.executors} executors, one client."
    )


def write_report(path: Path, found: Attribution) -> None:
    """``path`` as Markdown, and a picture beside it if matplotlib is installed."""
    picture = path.with_suffix(".png")
    drawn = draw(found, picture)
    head, rows = table_rows(found)
    lines = ["# Where the time goes", "", conditions_text(found), ""]
    lines += [f"![CPU for each thing]({picture.name})", ""] if drawn else []
    lines += [*markdown_table(head, rows), ""]
    lines += ["Certificates: " + ("all hold." if found.holds else "NOT ALL HOLD.")]
    path.write_text("\n".join([*lines, *conditions_lines(found.conditions), ""]), encoding="utf-8")


def draw(found: Attribution, path: Path) -> bool:
    """A bar for each feature, its parts by side."""
    if not available():
        return False
    made, (axes,) = figure(1, (9.5, 0.36 * len(found.prices) + 1.4))
    names = [price.name for price in found.prices][::-1]
    left = [0.0] * len(names)
    for side, label in zip(SIDES, ("Postgres", "executors", "client"), strict=True):
        values = [max(0.0, getattr(price.cpu_us, side) or 0.0) for price in found.prices][::-1]
        axes.barh(names, values, left=left, color=PARTS[side], label=label, height=0.62)
        left = [before + value for before, value in zip(left, values, strict=True)]
    for place, value in enumerate(left):
        axes.annotate(
            f"{value:,.0f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max([*left, 1.0]) * 1.1)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    heading(axes, "CPU µs of one more")
    save(made, path)
    return True
