"""``shards migrate`` is killed at every moment of every step: nothing is half done, and the next one goes on."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.support.cluster import TestCluster
from tests.support.processes import wait_until
from tests.support.releases import Release

MIGRATE = """
    import sys
    from sharded_wf.cluster.migration import migrate_fleet
    from sharded_wf.config import find_config

    path, stop_at = sys.argv[1:]

    def report(shard, step, moment):
        at = f"{shard} {step.label} {moment}"
        print(f"at {at}\\n", end="", flush=True)  # in one piece: the shards are reported by threads
        if at == stop_at:
            sys.stdin.readline()

    print(migrate_fleet(find_config(path), report=report).failed, "at the end", flush=True)
"""


def test_migrate_is_killed_at_each_moment_in_turn(
    two_shards: TestCluster, next_release: Release, seed: int, full: bool
) -> None:
    path = str(two_shards.config_file())
    moments = [
        f"pg1 {step['schema']} {step['version']:04d}_{step['name']} {moment}"
        for step in plan(two_shards, next_release)
        for moment in ("begins", "written", "done")
    ]
    assert len(moments) == 3 * (1 + 2 * 3)
    known = applied(two_shards)
    chosen = moments if full else sorted(random.Random(seed).sample(moments, 2), key=moments.index)
    for at in chosen:
        with next_release.run(MIGRATE, path, at) as process:
            process.wait_line(f"at {at}")
            process.kill()
        wait_until(lambda: not sessions(two_shards), "the sessions of the killed process end")
        assert applied(two_shards) == known + moments.index(at) // 3 + at.endswith("done")
        whole(two_shards)
    with next_release.run(MIGRATE, path, "") as process:
        process.wait_line("{} at the end")
    assert applied(two_shards) == known + len(moments) // 3
    whole(two_shards)
    assert noted(two_shards) == {(f"wf_000{slot}", number) for slot in range(6) for number in (4, 5)}


def test_an_old_executor_that_begins_meanwhile_serves_nothing(cluster: TestCluster, next_release: Release) -> None:
    """It looked before the first ``post``, and takes its lease while that is under way: it finds that it is too old."""
    at = "pg1 wf_0000 0005_post_region written"
    with next_release.run(MIGRATE, str(cluster.config_file()), at) as process:
        process.wait_line(f"at {at}")
        with cluster.worker() as old:
            wait_until(lambda: bool(cluster.leases()), "the old executor has written its lease")
            process.say("go on")
            process.wait_line("{} at the end")
            old.wait_line("not served any more: the tables are newer than this version can use")
            wait_until(lambda: not cluster.leases(), "it has given its lease up")


def plan(cluster: TestCluster, release: Release) -> list[dict[str, Any]]:
    """The steps to come on pg1, as the command tells programs."""
    with release.cli("shards", "migrate", "--plan", "--json", "-c", str(cluster.config_file())) as command:
        assert command.wait() == 0, command.output()
        first, _ = json.loads(command.output())["shards"]
    return list(first["steps"])


def applied(cluster: TestCluster) -> int:
    """How many migrations are noted on pg1."""
    return len(cluster.ask("select from wf_control.migration"))


def sessions(cluster: TestCluster) -> bool:
    return any(
        cluster.ask("select 1 from pg_stat_activity where application_name = 'sharded_wf migrate'", shard)
        for shard in (1, 2)
    )


def noted(cluster: TestCluster) -> set[tuple[str, int]]:
    return {
        (schema, version)
        for shard in (1, 2)
        for schema, version in cluster.ask(
            "select schema_name, version from wf_control.migration where schema_name ~ '^wf_[0-9]+$' and version > 3",
            shard,
        )
    }


def whole(cluster: TestCluster) -> None:
    """Every slot has all that is noted of it, and nothing else."""
    steps = noted(cluster)
    for shard in (1, 2):
        rows = cluster.ask(
            "select relnamespace::regnamespace::text, attname from pg_attribute join pg_class c on c.oid = attrelid "
            "where relname in ('claim', 'stay') and relnamespace::regnamespace::text ~ '^wf_[0-9]+$' and attnum > 0",
            shard,
        )
        for schema in {schema for schema, _ in rows}:
            columns = {column for of, column in rows if of == schema}
            assert ({"since", "workflow_id"} <= columns) == ((schema, 4) in steps)
            assert ("claimed_at" not in columns) == ((schema, 5) in steps)
