"""Quotas: the numbers that the kernel gets, and refusals that say why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cgroup
from sharded_wf.errors import BenchFailed


@given(st.floats(0.01, 1.0))
def test_the_quota_is_the_share_of_the_period_and_allowed(share: float) -> None:
    period, quota = cgroup.period_and_quota_us(share)
    assert quota >= cgroup.QUOTA_MIN_US
    assert cgroup.PERIOD_MIN_US <= period <= 1_000_000
    assert abs(quota / period - share) < 0.01 * share + 1 / period


def test_a_group_of_each_version_gets_its_files(tmp_path: Path) -> None:
    one = cgroup.Hierarchy(tmp_path, 1).make("one", 0.06)
    assert (one / "cpu.cfs_period_us").read_text() == "20000\n"
    assert (one / "cpu.cfs_quota_us").read_text() == "1200\n"
    assert (cgroup.Hierarchy(tmp_path, 2).make("two", 0.5) / "cpu.max").read_text() == "10000 20000\n"


def test_no_control_groups_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match="no control groups for CPU"):
        cgroup.find_hierarchy(tmp_path)


def test_a_directory_of_somebody_else_is_a_clear_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cgroup.procs").touch()
    assert cgroup.find_hierarchy(tmp_path).version == 1
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BenchFailed, match="not writable by this user"):
        cgroup.find_hierarchy(tmp_path)
