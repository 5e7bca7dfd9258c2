"""What can't be made for real on embedded servers: versions of Postgres that are too old or too new."""

from __future__ import annotations

import uuid

import pytest

from sharded_wf.cluster.shard_map import Identity, Record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.doctor.checks import ClusterCheck, Fleet
from sharded_wf.doctor.commands import cli, psql, worker
from sharded_wf.doctor.finding import Finding, Severity, age, size, some
from sharded_wf.doctor.look import Facts
from sharded_wf.doctor.registry import FAMILIES

CONFIG = ClusterConfig("shop", (ShardConfig("pg1", "postgresql://u:secret@h/d"),))


def found(check: str, facts: Facts) -> list[Finding]:
    run = next(one.run for family in FAMILIES for one in family.checks
               if one.name == check and isinstance(one, ClusterCheck))  # fmt: skip
    return list(run(Fleet(CONFIG, {"pg1": facts}, {}, "0.1.0")))


@pytest.mark.parametrize(
    ("version", "severity"), [(130012, Severity.CRITICAL), (140001, None), (180004, None), (200000, Severity.NOTE)]
)
def test_versions_of_postgres(version: int, severity: Severity | None) -> None:
    identity = Identity(uuid.uuid4(), "shop", "pg1", 1, "", 0)
    facts = Facts("pg1", Record(identity), version, False, "d", "u", {}, (), (), (), 0.0, 0.0)
    assert [one.severity for one in found("postgres-version", facts)] == ([] if severity is None else [severity])


def test_commands_are_for_the_shell_and_hold_no_password() -> None:
    assert psql(CONFIG.shards[0], "select 'x'") == """psql 'user=u dbname=d host=h' -c 'select '"'"'x'"'"''"""
    assert cli(CONFIG, "shards", "migrate") == "sharded-wf shards migrate"
    assert worker(CONFIG, "shop@2", "v i p") == "sharded-wf worker MODULE:APP --queue 'v i p'  # the app named 'shop'"


def test_words() -> None:
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert [age(seconds) for seconds in (0.25, 15, 300, 9000, 400_000)] == ["0.2 s", "15 s", "5 min", "2.5 h", "4.6 d"]
    assert [size(count) for count in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]
