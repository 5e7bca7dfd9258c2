"""The shard map as processes find it: the highest epoch wins, absence is tolerated, contradiction is not."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import ClusterMismatch, ClusterNotInitialized, SchemaOutOfDate, ShardUnavailable

NOWHERE = "host=127.0.0.1 port=1"


@pytest.fixture
def config(databases: Callable[[int], list[str]]) -> ClusterConfig:
    made = ClusterConfig("shop", tuple(ShardConfig(f"pg{number}", dsn) for number, dsn in enumerate(databases(3), 1)))
    init_cluster(made, slots=6)
    return made


def execute(shard: ShardConfig, statement: str) -> None:
    with psycopg.connect(shard.dsn, autocommit=True) as conn:
        conn.execute(statement.encode())


def without(config: ClusterConfig, *names: str) -> ClusterConfig:
    shards = (
        ShardConfig(shard.name, f"{NOWHERE} dbname={shard.name}") if shard.name in names else shard
        for shard in config.shards
    )
    return ClusterConfig(config.name, tuple(shards))


def test_shards_that_are_away_are_tolerated_and_named(config: ClusterConfig) -> None:
    found = load_map(without(config, "pg1", "pg3"))
    assert found.shard_map == load_map(config).shard_map
    assert set(found.unreachable) == {"pg1", "pg3"}
    assert "Connection refused" in found.unreachable["pg1"]
    assert [shard.name for shard in found.shards] == ["pg1", "pg2", "pg3"]


def test_if_none_answers_nothing_is_known(config: ClusterConfig) -> None:
    with pytest.raises(ShardUnavailable, match="'pg1'"):
        load_map(without(config, "pg1", "pg2", "pg3"))


def test_a_frozen_shard_delays_the_answer_only_so_long(
    config: ClusterConfig, server_factory: Callable[..., EmbeddedServer]
) -> None:
    server = server_factory()
    frozen = ShardConfig("pg3", make_conninfo(server.dsn("postgres"), connect_timeout=2))
    server.pause()
    try:
        began = time.monotonic()
        found = load_map(ClusterConfig("shop", (*config.shards[:2], frozen)))
        assert time.monotonic() - began < 12
        assert set(found.unreachable) == {"pg3"}
    finally:
        server.resume()


def test_the_highest_epoch_wins_slot_by_slot(config: ClusterConfig) -> None:
    execute(config.shards[0], "update wf_control.shard_map set shard = 'pg2', epoch = 4 where slot = 0")
    execute(config.shards[2], "update wf_control.shard_map set shard = 'pg1', epoch = 3 where slot = 0")
    execute(config.shards[2], "update wf_control.shard_map set shard = 'pg3', epoch = 5 where slot = 1")
    found = load_map(config).shard_map
    assert found.placement == dict(enumerate(("pg2", "pg3", "pg3", "pg1", "pg2", "pg3")))
    assert found.epoch == 5


def test_a_shard_that_was_down_gets_the_new_map_with_the_next_init(config: ClusterConfig) -> None:
    execute(config.shards[0], "update wf_control.shard_map set shard = 'pg2', epoch = 4 where slot = 0")
    init_cluster(config)
    assert load_map(without(config, "pg1")).shard_map == load_map(config).shard_map
    assert load_map(config).shard_map.placement[0] == "pg2"


CONTRADICTIONS = {
    "shard map disagree: at epoch 1 slot 0": "update wf_control.shard_map set shard = 'pg2' where slot = 0",
    "hashes with md5": "update wf_control.cluster set hash = 'md5'",
    "seed 7": "update wf_control.cluster set hash_seed = 7",
    "'pg1' was made with 5 slots, 'pg2' with 6": "update wf_control.cluster set slots = 5",
    "belongs to the cluster 'bank'": "update wf_control.cluster set name = 'bank'",
    "in truth the shard 'pg9'": "update wf_control.cluster set shard = 'pg9'",
    "two clusters": "update wf_control.cluster set cluster_id = gen_random_uuid()",
    "also has pg7": "update wf_control.shard_map set shard = 'pg7', epoch = 2 where slot = 0",
    "has gaps": "update wf_control.shard_map set slot = -1 where slot = 0",
    "split more often than can be": "update wf_control.shard_map set slot = 9999 where slot = 0",
}
SAVE = "create table saved_cluster as table wf_control.cluster; create table saved_map as table wf_control.shard_map"
RESTORE = (
    "truncate wf_control.cluster, wf_control.shard_map; insert into wf_control.cluster table saved_cluster; "
    "insert into wf_control.shard_map table saved_map"
)


def test_contradictions_are_refused(config: ClusterConfig) -> None:
    execute(config.shards[0], SAVE)
    for complaint, contradiction in CONTRADICTIONS.items():
        execute(config.shards[0], contradiction)
        with pytest.raises(ClusterMismatch, match=complaint):
            load_map(config)
        execute(config.shards[0], RESTORE)
        load_map(config)


def test_empty_databases_hold_no_cluster(databases: Callable[[int], list[str]]) -> None:
    empty = ClusterConfig.from_dsn(databases(1)[0])
    with pytest.raises(ClusterNotInitialized, match="shards init"):
        load_map(empty)
    # A new shard answers, and those that may know the cluster don't.
    with pytest.raises(ShardUnavailable):
        load_map(ClusterConfig("main", (*empty.shards, ShardConfig("pg2", NOWHERE))))


def test_old_tables_are_refused_by_shard(config: ClusterConfig) -> None:
    execute(config.shards[1], "delete from wf_control.migration where schema_name = 'wf_0001'")
    with pytest.raises(SchemaOutOfDate, match=r"'pg2': .*wf_0001 0001_pre_initial.*shards migrate"):
        load_map(config)
