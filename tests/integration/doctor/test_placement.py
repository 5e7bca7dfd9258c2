"""Where slots are, and the moves that take them elsewhere. Each condition is made for real."""

from __future__ import annotations

import dataclasses

import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.doctor.examine import examine
from sharded_wf.doctor.finding import Severity
from sharded_wf.reshard.fleet import Wish, move_all
from sharded_wf.reshard.members import remove_shard
from tests.integration.reshard.test_interrupted import COORDINATOR
from tests.support.cluster import TestCluster
from tests.support.doctor import config_of, do, findings, gone, is_mended, mend, the_finding
from tests.support.processes import WorkerProcess


def test_copies_of_the_map(two_shards: TestCluster) -> None:
    config = config_of(two_shards)
    do(two_shards, "update wf_control.shard_map set epoch = 2 where slot = 0", shard=2)  # pg1 was away then
    finding = is_mended(config, "map-copies")
    assert (finding.shard, "old for 1 slots: 0" in finding.what) == ("pg1", True)
    do(two_shards, "update wf_control.shard_map set shard = 'pg2' where slot = 2")  # as from a backup
    found = findings(config, "map-copies")
    assert [one.severity for one in found] == [Severity.CRITICAL]
    assert "slot 2 lies on pg2, elsewhere on pg1" in found[0].what or "slot 2 lies on pg1" in found[0].what


def test_slots_that_are_not_where_they_should_be(two_shards: TestCluster) -> None:
    config = config_of(two_shards)
    assert not findings(config, "slot-homes")
    do(two_shards, "alter schema wf_0000 rename to lost")
    finding = the_finding(config, "slot-homes")
    assert (finding.shard, "1 slots are not there" in finding.what) == ("pg1", True)
    do(two_shards, "alter schema lost rename to wf_0000")
    gone(config, "slot-homes")
    # A backup of before a move.
    do(two_shards, "create schema wf_0000", "create table wf_0000.fence as select 0 as slot, 'pg2'::text as shard, "
       "1::bigint as epoch, true as live", shard=2)  # fmt: skip
    found = findings(config, "slot-homes")
    assert [one.what for one in found] == ["slot 0 is live on pg1 and pg2"]
    assert found[0].severity is Severity.CRITICAL
    do(two_shards, "alter schema wf_0000 rename to gone", shard=1)
    assert "slot 0 lives here, and the newest map says on pg1" in [one.what for one in findings(config, "slot-homes")]


def test_slots_that_were_split_and_have_moved_are_in_order(two_shards: TestCluster) -> None:
    """Rows of a slot that was split stay in the map, also when its shard is none any more."""
    splits = [Wish(slot, name, name) for slot, name in load_map(two_shards.config).shard_map.placement.items()]
    assert move_all(two_shards.config, splits, pace=0.0)[1] == {}
    assert examine(config_of(two_shards)).slots == 12
    family = ("map-copies", "slot-homes", "missing-shard")
    assert not any(findings(config_of(two_shards), check) for check in family)
    halves = load_map(two_shards.config).shard_map.slots_of("pg2")
    assert move_all(two_shards.config, [Wish(slot, "pg2", "pg1") for slot in halves], pace=0.0)[1] == {}
    remove_shard(two_shards.config, "pg2")
    alone = dataclasses.replace(two_shards.config, shards=two_shards.config.shards[:1])
    assert not any(findings(alone, check) for check in family)
    do(two_shards, "create schema wf_0000", "create table wf_0000.fence as select 0 as slot, 'pg1'::text as shard, "
       "1::bigint as epoch, true as live")  # fmt: skip
    assert "slot 0 lives here, and the newest map says that it was split" in the_finding(alone, "slot-homes").what


def test_a_file_that_does_not_name_every_shard(two_shards: TestCluster) -> None:
    config = dataclasses.replace(two_shards.config, shards=two_shards.config.shards[:1], source="shards.toml")
    finding = the_finding(config, "missing-shard")
    assert "the map names the shard 'pg2', and shards.toml does not" in finding.what
    assert not findings(two_shards.config, "missing-shard")


@pytest.mark.parametrize("state", ["draining", "retired"])
def test_a_move_that_hangs(two_shards: TestCluster, state: str) -> None:
    config = config_of(two_shards)
    path = str(two_shards.config_file())
    with WorkerProcess(COORDINATOR, path, state, "run", "pg2") as coordinator:
        coordinator.wait_line(f"at {state}")
        assert not findings(config, "unfinished-move")  # somebody drives it
        coordinator.kill()
    finding = the_finding(config, "unfinished-move")
    assert finding.severity is (Severity.CRITICAL if state == "retired" else Severity.WARNING)
    assert not findings(config, "slot-homes")
    assert not findings(config, "move-leftovers")
    mend(finding)
    assert not findings(config, "unfinished-move")
    assert load_map(config).shard_map.shard_of_slot(0) == "pg2"


def test_leftovers_of_moves(cluster: TestCluster) -> None:
    do(
        cluster,
        "create schema wf_0000_changes_9",
        "select wf_control.capture_changes('wf_0000', 'wf_0000_changes_9', 'timer', 'due_at, workflow_id')",
        "create schema wf_0001_retired_3",
        "insert into wf_0000.timer values (now(), 'x')",
    )
    found = findings(cluster.config, "move-leftovers")
    assert len(found) == 2
    for one in reversed(found):  # the triggers first: they write into the schema
        mend(one)
        do(cluster, "delete from wf_0000.timer")
    assert not findings(cluster.config, "move-leftovers")
    do(cluster, "insert into wf_0000.timer values (now(), 'x')")
