"""Quotas: the numbers that the kernel gets, and refusals that say why."""

from __future__ import annotations

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


def test_version_2_without_the_controller_is_a_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    own = cgroup._own_group_v2(tmp_path)
    own.mkdir(parents=True, exist_ok=True)
    (own / "cgroup.subtree_control").write_text("memory\n")
    (own / "cgroup.subtree_control").chmod(0o400)
    if (own / "cgroup.subtree_control").stat().st_mode & 0o200:
        pytest.fail("the file can be written")
    try:
        found = cgroup.find_hierarchy(tmp_path)
    except BenchFailed as error:
        assert "does not hand the cpu controller down" in str(error)
    else:
        assert found.version == 2  # root may write whatever the mode says; the file then reads "+cpu"
