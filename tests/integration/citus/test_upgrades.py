"""``shards migrate`` on Citus: tables change through the coordinator, and it is the nodes that know who is old."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from sharded_wf.cluster.migration import migrate_fleet
from sharded_wf.errors import SchemaOutOfDate
from sharded_wf.postgres import migrate as subject
from sharded_wf.postgres.connect import connection
from sharded_wf.postgres.migrate import Moment, SchemaStep, check_schema
from sharded_wf.postgres.queries import Migration, load_migrations
from tests.support.cluster import TestCluster

RELEASED = {kind: load_migrations(kind) for kind in ("control", "slot")}
NEWER = RELEASED | {
    "slot": (
        *RELEASED["slot"],
        Migration(4, "pre", "colour", "alter table {slot}.workflow add column colour text"),
        Migration(5, "post", "colour", "alter table {slot}.workflow drop column colour"),
    )
}


class KilledError(Exception):
    """Instead of a signal."""


def test_an_old_executor_that_begins_meanwhile_serves_nothing(
    make_cluster: Callable[..., TestCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first slot changes, every node has heard: also if it ends there, and is run again."""
    cluster = make_cluster(2, slots=4)

    def as_version(known: dict[str, tuple[Migration, ...]]) -> None:
        monkeypatch.setattr(subject, "load_migrations", lambda kind: known[kind])

    def look(_shard: str, step: SchemaStep, moment: Moment) -> None:
        if step.migration.phase == "post" and moment == "begins":
            with cluster.worker() as old:
                assert old.wait() != 0
                assert "every slot has 0005_post_colour" in old.output()
            as_version(RELEASED)
            for dsn in cluster.direct:
                with connection(dsn, purpose="look") as conn, pytest.raises(SchemaOutOfDate, match="every slot has"):
                    check_schema(conn)
            as_version(NEWER)
            raise KilledError

    as_version(NEWER)
    with psycopg.connect(cluster.direct[1], autocommit=True) as conn:  # an old executor, alive
        conn.execute(
            "insert into wf_control.lease (id, executor, isolated, capabilities, queues, version, started_at, beat_at, "
            "control_known, slot_known) "
            "values (gen_random_uuid(), 'host:1', false, '{}', null, '0', now(), now() + interval '1 h', 6, 3)"
        )
    assert "host:1 (0), which runs a version" in str(migrate_fleet(cluster.config).failed[cluster.name(2)])
    with psycopg.connect(cluster.direct[1], autocommit=True) as conn:
        conn.execute("delete from wf_control.lease")
    with pytest.raises(KilledError):
        migrate_fleet(cluster.config, report=look)
    answers = migrate_fleet(cluster.config)
    assert answers.failed == {}
    assert [step.migration.version for step in answers.given["coordinator"]] == [5] * 4
    assert all(given == [] for given in migrate_fleet(cluster.config).given.values())
