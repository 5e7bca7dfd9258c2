"""The demo, reduced: real processes, a real SIGKILL, and the checks; and checks that can fail."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from sharded_wf.dev.demo import Result, find_packages
from sharded_wf.dev.demo_flows import Counts, count_file, count_package
from sharded_wf.dev.demo_rows import WorkflowRow
from sharded_wf.dev.demo_verdict import check, figures_of
from sharded_wf.model.status import Status


def test_the_demo_survives_and_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sharded_wf", "demo", "--files", "60"], capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    out = ran.stdout
    assert "\x1b" not in out  # into a file go no colours and no progress
    assert re.search(r"SIGKILL for executor 2 \(\d+\)", out)
    assert [line[0] for line in out.splitlines() if line.startswith(("✓", "✗"))] == ["✓"] * 3
    assert "the totals equal those of a plain process: 60 files" in out
    table = [line.split() for line in out.splitlines() if line.startswith(("pg", "all"))]
    assert [row[0] for row in table] == ["pg1", "pg2", "pg3", "pg4", "all"]
    assert sum(int(row[1]) for row in table[:4]) == int(table[4][1])
    assert int(table[4][2]) == 3 * 60
    assert "workflow show first" in out


def test_packages_are_the_whole_standard_library() -> None:
    packages = find_packages()
    assert sum(map(len, packages.values())) > 500
    assert any(path.endswith("asyncio/tasks.py") for path in packages["asyncio"])
    assert not any("site-packages" in path for paths in packages.values() for path in paths)
    assert sum(map(len, find_packages(10).values())) == 10


def row(id_: str, name: str, *, steps: int = 0, children: int = 0) -> WorkflowRow:
    return WorkflowRow(id_, name, Status.SUCCEEDED, 0, 1_000_000, 3_000_000, steps, children)


GOOD = Result(
    packages={"json": ["a.py", "b.py"]},
    counted={"json": Counts(files=2, lines=10)},
    expected={"json": Counts(files=2, lines=10)},
    rows={
        "pg1": [row("json", count_package.name, children=2)],
        "pg2": [row(f"json/count_file-{number}", count_file.name, steps=3) for number in (1, 2)],
    },
    killed_at_files=1,
    held_by_killed=frozenset({"json/count_file-2"}),
    takeover_seconds=6.0,
    work_seconds=9.0,
)
_FIRST, _SECOND = GOOD.rows["pg2"]


def with_files(*rows: WorkflowRow) -> Result:
    return replace(GOOD, rows={**GOOD.rows, "pg2": list(rows)})


def test_a_good_result_passes() -> None:
    assert [one.holds for one in check(GOOD)] == [True, True, True]
    assert "no valid Python" not in check(GOOD)[0].text
    figures = figures_of(GOOD.rows["pg2"], 2.0)
    assert (figures.workflows, figures.steps, figures.per_second) == (2, 6, 1.0)
    assert (figures.waited_p50_seconds, figures.ran_p95_seconds) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        (replace(GOOD, expected={"json": Counts(files=2, lines=11)}), [False, True, True]),
        (replace(GOOD, counted={}), [False, True, True]),
        (with_files(_FIRST), [True, False, False]),
        (with_files(_FIRST, _SECOND, _SECOND), [True, False, True]),
        (with_files(_FIRST, _SECOND, row("stray", count_file.name, steps=3)), [True, False, True]),
        (with_files(_FIRST, msgspec.structs.replace(_SECOND, steps=4)), [True, False, True]),
        (with_files(_FIRST, msgspec.structs.replace(_SECOND, status=Status.FAILED)), [True, False, False]),
    ],
)
def test_a_bad_result_does_not_pass(bad: Result, verdict: list[bool]) -> None:
    assert [one.holds for one in check(bad)] == verdict
