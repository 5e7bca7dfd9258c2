"""Workflows that look as if they were old."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from tests.support.certificate import slot_schemas
from tests.support.cluster import TestCluster


def slots_of(cluster: TestCluster, shard: int = 1) -> list[str]:
    """The schemas of the slots on a shard."""
    with psycopg.connect(cluster.direct[shard - 1], autocommit=True) as conn:
        return slot_schemas(conn)


def age(cluster: TestCluster, hours: int = 2, *, ids: Sequence[str] | None = None) -> None:
    """Make workflows look as if all of it had been so long ago."""
    for shard, dsn in enumerate(cluster.direct, 1):
        with psycopg.connect(dsn, autocommit=True) as conn:
            for slot in slots_of(cluster, shard):
                chosen = "" if ids is None else "where id = any(%(ids)s)"
                of = "" if ids is None else "where workflow_id = any(%(ids)s)"
                back = f"- {hours} * interval '1 hour'"
                names = ("created_at", "started_at", "completed_at")
                then = ", ".join(f"{name} {back} as {name}" for name in names)
                moved = ", ".join(f"{name} = o.{name}" for name in names)
                old = f"select id, {then} from {slot}.workflow {chosen}"
                bad = f"select workflow_id, failed_at, failed_at {back} as older from {slot}.failed {of}"
                # The sums apart: Citus takes none in the update itself.
                update = f"with o as materialized ({old}) update {slot}.workflow w set {moved} from o where w.id = o.id"
                update_failed = (
                    f"with o as materialized ({bad}) update {slot}.failed f set failed_at = o.older from o "
                    "where f.workflow_id = o.workflow_id and f.failed_at = o.failed_at"
                )
                for text in (update, update_failed):
                    conn.execute(text.encode(), {"ids": list(ids or ())})
