"""What the doctor finds on a Citus cluster alone."""

from __future__ import annotations

import psycopg

from sharded_wf.cluster.citus import move_rows
from sharded_wf.cluster.directory import load_map
from tests.support.cluster import TestCluster
from tests.support.doctor import config_of, findings, is_mended


def test_rows_that_citus_has_moved(two_shards: TestCluster) -> None:
    config = config_of(two_shards)
    assert not findings(config, "rows-elsewhere")
    slot = load_map(config).shard_map.slots_of(two_shards.name(1))[0]
    assert config.coordinator is not None
    with psycopg.connect(config.coordinator, autocommit=True, cursor_factory=psycopg.RawCursor) as conn:
        move_rows(conn, slot, two_shards.config.shards[1])
    finding = is_mended(config, "rows-elsewhere")
    assert (finding.shard, str(slot) in finding.what) == (two_shards.name(1), True)
