"""The list of checks: each has a name, a family, a section in the runbook, and a test."""

from __future__ import annotations

import re
from pathlib import Path

from sharded_wf.doctor.finding import RUNBOOK
from sharded_wf.doctor.registry import FAMILIES, WRONG_DATABASE

PROJECT = Path(__file__).resolve().parents[3]
NAMES = [check.name for family in FAMILIES for check in family.checks]


def test_names_are_unique() -> None:
    assert len(NAMES) == len(set(NAMES))


def test_the_runbook_has_a_section_for_each_check_and_no_other() -> None:
    sections = re.findall(r"^## ([a-z-]+)$", (PROJECT / RUNBOOK).read_text(), re.MULTILINE)
    assert sorted(sections) == sorted([*NAMES, WRONG_DATABASE])


def test_each_check_has_a_test_that_makes_its_condition() -> None:
    tests = "".join(path.read_text() for path in (PROJECT / "tests").rglob("doctor/test_*.py"))
    assert [name for name in [*NAMES, WRONG_DATABASE] if f'"{name}"' not in tests] == []
