"""Ours and one peer, measured for two seconds on a real server: the figures come out of their own tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from bench.compare import CompareError, compare, measure
from bench.peers import CONTENDERS, find_version
from bench.peers.contender import Process, Shape, Told
from bench.peers.ours import SHARDED_WF, ShardedWf
from sharded_wf.dev.embedded import EmbeddedServer

Servers = Callable[..., EmbeddedServer]


def installed_peer() -> str:
    for name in ("PgQueuer", "procrastinate", "DBOS"):
        if find_version(next(one for one in CONTENDERS if one.name == name)) is not None:
            return name
    pytest.skip("NO PEER IS INSTALLED, so none is measured: pip install -e '.[bench-peers]'")


def test_ours_beside_an_installed_peer(server_factory: Servers) -> None:
    peer = installed_peer()
    said: list[str] = []
    dsn = server_factory().dsn("postgres")
    found = compare(
        dsn, seconds=2, rounds=1, steps=(0,), executors=1, slots=4, only=("sharded_wf", peer), say=said.append
    )
    assert found.failed == ()
    assert [(one.contender, one.steps) for one in found.measured] == [("sharded_wf", 0), (peer, 0)]
    assert all(one.per_second > 0 and one.started and one.finished for one in found.measured)
    assert found.postgres["fsync"] == found.postgres["synchronous_commit"] == "on"
    assert {one.name for one in found.contenders} == {"sharded_wf", peer}


@dataclass(frozen=True)
class Absent(ShardedWf):
    name: str = "absent"
    packages: tuple[str, ...] = ("no-such-distribution",)


@dataclass(frozen=True)
class Broken(ShardedWf):
    """Its executors end at once."""

    name: str = "broken"

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return super().processes("host=/nowhere", shape, told)


def test_who_is_missing_or_dies_is_named_and_the_others_are_measured(server_factory: Servers) -> None:
    said: list[str] = []
    contenders: Any = (Absent(), Broken(), SHARDED_WF)
    found = compare(
        server_factory().dsn("postgres"), seconds=1, rounds=1, steps=(1,), executors=1, slots=4, contenders=contenders,
        say=said.append,
    )  # fmt: skip
    assert found.left_out == ("absent",)
    assert any("LEFT OUT: absent" in line for line in said)
    assert len(found.failed) == 1
    assert "broken, 1 steps, round 1: a process ended" in found.failed[0]
    assert [one.contender for one in found.measured] == ["sharded_wf"]


def test_a_server_that_forgets_is_refused(database: str) -> None:
    with pytest.raises(CompareError, match="synchronous_commit = off"):
        compare(make_conninfo(database, options="-c synchronous_commit=off"))


def test_a_name_that_is_unknown_is_refused(database: str) -> None:
    with pytest.raises(CompareError, match="No such contender: temporal"):
        compare(database, only=("temporal",))


def test_steps_that_are_not_recorded_are_noticed(server_factory: Servers) -> None:
    @dataclass(frozen=True)
    class Forgetful(ShardedWf):
        def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
            return super().processes(dsn, Shape(0, shape.executors, shape.slots), told)

    with pytest.raises(CompareError, match="steps are recorded"):
        measure(Forgetful(), server_factory().dsn("postgres"), Shape(1, 1, 4), 0.5, 0)
