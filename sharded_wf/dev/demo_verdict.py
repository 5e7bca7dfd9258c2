"""What the demo's result is worth: figures for each shard, and the checks, which know nothing of the engine's own word.

They compare: what the workflows returned with what a plain process computed, and the rows in the databases with the
list of files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sharded_wf.clock import SECOND_US
from sharded_wf.dev.demo import Result
from sharded_wf.dev.demo_flows import Counts, count_file, count_package, total
from sharded_wf.dev.demo_rows import WorkflowRow
from sharded_wf.model.status import Status

STEPS_PER_FILE = 3


@dataclass(frozen=True)
class Figures:
    """What one shard did. Waited: from a workflow's start to its first claim; ran: from then to its end, takeovers
    included. Percentiles are of the files' workflows, in seconds."""

    workflows: int
    steps: int
    per_second: float
    waited_p50_seconds: float
    ran_p50_seconds: float
    ran_p95_seconds: float


@dataclass(frozen=True)
class Check:
    """One thing that must hold, whether it did, and what was seen."""

    holds: bool
    text: str


def figures_of(rows: Sequence[WorkflowRow], seconds: float) -> Figures:
    """The figures of these rows, over a run that took ``seconds``."""
    files = [row for row in rows if row.name == count_file.name]
    waited = sorted((row.started_at or row.created_at) - row.created_at for row in files)
    ran = sorted((row.completed_at or row.created_at) - (row.started_at or row.created_at) for row in files)
    return Figures(
        workflows=len(rows),
        steps=sum(row.steps for row in rows),
        per_second=len(rows) / seconds if seconds else 0.0,
        waited_p50_seconds=_percentile(waited, 50) / SECOND_US,
        ran_p50_seconds=_percentile(ran, 50) / SECOND_US,
        ran_p95_seconds=_percentile(ran, 95) / SECOND_US,
    )


def run_seconds(rows: Iterable[WorkflowRow]) -> float:
    """From the first start to the last end."""
    kept = list(rows)
    ends = [row.completed_at for row in kept if row.completed_at is not None]
    return (max(ends) - min(row.created_at for row in kept)) / SECOND_US if ends else 0.0


def check(result: Result) -> list[Check]:
    """Every check, in the order in which they are told."""
    return [_check_totals(result), _check_once(result), _check_takeover(result)]


def _check_totals(result: Result) -> Check:
    wrong = [name for name in result.packages if result.counted.get(name) != result.expected.get(name)]
    if wrong:
        return Check(False, f"{len(wrong)} packages differ from the plain computation: {', '.join(wrong[:5])}")
    sums = total(result.counted.values())
    return Check(True, f"the totals equal those of a plain process: {_told(sums)}")


def _told(sums: Counts) -> str:
    invalid = f"; {sums.invalid:,} of the files no valid Python, on purpose" if sums.invalid else ""
    return (
        f"{sums.files:,} files, {sums.lines:,} lines, {sums.classes:,} classes, {sums.functions:,} functions, "
        f"{sums.coroutines:,} coroutines{invalid}"
    )


def _check_once(result: Result) -> Check:
    """Each workflow that must be is there once, in one slot of one shard, succeeded, with all that it recorded."""
    rows = [row for found in result.rows.values() for row in found]
    seen = Counter(row.id for row in rows)
    wanted = {
        f"{package}/{count_file.short_name}-{number}"
        for package, paths in result.packages.items()
        for number in range(1, len(paths) + 1)
    } | set(result.packages)
    wrong = [id_ for id_ in wanted | seen.keys() if id_ not in wanted or seen[id_] != 1]
    wrong += [row.id for row in rows if not _is_whole(row, result)]
    if wrong:
        return Check(False, f"{len(wrong)} workflows did not finish exactly once: {', '.join(sorted(wrong)[:5])}")
    steps = sum(row.steps for row in rows)
    return Check(True, f"{len(rows):,} workflows finished, each exactly once, with {steps:,} recorded steps")


def _is_whole(row: WorkflowRow, result: Result) -> bool:
    if row.status is not Status.SUCCEEDED or row.completed_at is None:
        return False
    if row.name == count_package.name:
        return row.children == len(result.packages.get(row.id, ()))
    return row.steps == STEPS_PER_FILE


def _check_takeover(result: Result) -> Check:
    finished = {row.id for found in result.rows.values() for row in found if row.status is Status.SUCCEEDED}
    lost = result.held_by_killed - finished
    if lost:
        return Check(False, f"{len(lost)} workflows of the killed executor are lost: {', '.join(sorted(lost)[:5])}")
    held = len(result.held_by_killed)
    return Check(
        True,
        f"{held:,} workflows that the killed executor held were taken over, {result.takeover_seconds:.1f} s after its "
        "death, and finished by the other",
    )


def _percentile(ordered: Sequence[int], percent: int) -> float:
    return float(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]) if ordered else 0.0
