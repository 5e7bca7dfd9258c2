"""Making a cluster: one cluster, whole, whoever makes it and however often it is interrupted; and never over
another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from sharded_wf.cluster import initialize
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.initialize import Initialized, init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterMismatch, ClusterNotInitialized, ConfigError, ShardUnavailable

Databases = Callable[[int], list[str]]


def cluster(dsns: list[str], name: str = "shop") -> ClusterConfig:
    return ClusterConfig(name, tuple(ShardConfig(f"pg{number}", dsn) for number, dsn in enumerate(dsns, 1)))


def execute(shard: ShardConfig, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(shard.dsn, autocommit=True) as conn:
        cursor = conn.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def fences(config: ClusterConfig) -> dict[int, tuple[str, int, bool]]:
    """Every slot that exists anywhere, with what its fence says; fails if one exists twice."""
    found: dict[int, tuple[str, int, bool]] = {}
    for shard in config.shards:
        for (schema,) in execute(shard, "select nspname from pg_namespace where nspname ~ '^wf_[0-9]+$'"):
            ((slot, name, epoch, live),) = execute(shard, f"select slot, shard, epoch, live from {schema}.fence")
            assert name == shard.name
            assert slot not in found
            found[slot] = (name, epoch, live)
    return found


def test_slots_are_dealt_out_in_turn(databases: Databases) -> None:
    config = cluster(databases(3))
    made = init_cluster(config, slots=7)
    assert made.created
    assert made.shard_map.placement == dict(enumerate(("pg1", "pg2", "pg3", "pg1", "pg2", "pg3", "pg1")))
    assert fences(config) == {slot: (shard, 1, True) for slot, shard in made.shard_map.placement.items()}
    found = load_map(config)
    assert (found.shard_map, found.cluster_id) == (made.shard_map, made.cluster_id)
    assert found.shard_map.epoch == 1


def test_slots_are_dealt_out_by_weight(databases: Databases) -> None:
    first, second, third = databases(3)
    config = ClusterConfig(
        "weighed", (ShardConfig("a", first, 2.0), ShardConfig("b", second), ShardConfig("c", third, 0.0))
    )
    placement = dict(enumerate(("a", "a", "b", "a", "a", "b")))
    assert init_cluster(config, slots=6).shard_map.placement == placement


def test_making_it_again_changes_nothing(databases: Databases) -> None:
    config = cluster(databases(2))
    first = init_cluster(config, slots=4)
    again = init_cluster(config)
    assert again == Initialized(first.cluster_id, first.shard_map, created=False, joined=())


def test_two_at_once_make_one_cluster(databases: Databases) -> None:
    dsns = databases(2)
    one = cluster(dsns)
    # The second names the same shards in the opposite order.
    other = ClusterConfig("shop", tuple(reversed(one.shards)))
    barrier, made = threading.Barrier(2), list[Initialized]()

    def work(config: ClusterConfig) -> None:
        barrier.wait()
        made.append(init_cluster(config, slots=6))

    threads = [threading.Thread(target=work, args=(config,)) for config in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.cluster_id for result in made}) == 1
    assert sorted(result.created for result in made) == [False, True]
    assert made[0].shard_map == made[1].shard_map
    assert len(fences(one)) == 6


class Interrupted(Exception):
    pass


class Tripwire:
    """Raises at one of the calls that write, before it or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self._lock, self._left, self._after = threading.Lock(), at, after
        for name in ("migrate", "write_record", "raise_fences"):
            monkeypatch.setattr(initialize, name, self._wired(getattr(initialize, name)))

    def _wired(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                self._left -= 1
                trips = self._left == 0
            if trips and not self._after:
                raise Interrupted
            result = real(*args, **options)
            if trips:
                raise Interrupted
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_wherever_it_is_interrupted_it_can_be_finished(
    databases: Databases, after: bool, full: bool, seed: int
) -> None:
    # Calls that write, with two shards: 2 that decide, 8 that build, 2 that go live.
    calls = range(1, 13) if full else sorted({1 + seed % 12, 3})
    for at in calls:
        config = cluster(databases(2))
        with pytest.MonkeyPatch.context() as patch:
            Tripwire(patch, at, after=after)
            with pytest.raises(Interrupted):
                init_cluster(config, slots=4)
        # Nobody works with it before it is whole.
        decided = {row for shard in config.shards if exists(shard) for row in execute(shard, CLUSTER_ID)}
        try:
            load_map(config)
        except ClusterNotInitialized:
            pass
        else:
            assert len(fences(config)) == 4
        made = init_cluster(config)
        if decided:
            assert {(made.cluster_id,)} == decided
        else:
            assert made.shard_map.slots == 48
        assert fences(config) == {slot: (shard, 1, True) for slot, shard in made.shard_map.placement.items()}
        assert load_map(config).shard_map == made.shard_map
        assert not init_cluster(config).created


CLUSTER_ID = "select cluster_id from wf_control.cluster"


def exists(shard: ShardConfig) -> bool:
    return execute(shard, "select to_regclass('wf_control.cluster') is not null") == [(True,)]


def test_a_new_shard_joins_without_slots(databases: Databases) -> None:
    dsns = databases(3)
    made = init_cluster(cluster(dsns[:2]), slots=4)
    config = cluster(dsns)
    assert [shard.name for shard in load_map(config).shards] == ["pg1", "pg2"]
    joined = init_cluster(config)
    assert joined == Initialized(made.cluster_id, made.shard_map, created=False, joined=("pg3",))
    assert [shard.name for shard in load_map(config).shards] == ["pg1", "pg2", "pg3"]


def test_a_slot_that_is_missing_is_never_made_anew(databases: Databases) -> None:
    config = cluster(databases(2))
    init_cluster(config, slots=4)
    execute(config.shards[0], "alter schema wf_0002 rename to wf_0002_retired_1")
    init_cluster(config)
    assert sorted(fences(config)) == [0, 1, 3]


def test_a_lost_shard_is_not_replaced_by_an_empty_one(databases: Databases) -> None:
    dsns = databases(3)
    init_cluster(cluster(dsns[:2]), slots=4)
    replaced = cluster([dsns[0], dsns[2]])
    with pytest.raises(ClusterMismatch, match=r"'pg2' should hold 2 slots, but its database .* is empty"):
        init_cluster(replaced)
    with pytest.raises(ClusterMismatch, match="restore a backup"):
        load_map(replaced)
    assert not exists(replaced.shards[1])


def test_what_belongs_to_others_is_refused_untouched(databases: Databases) -> None:
    dsns = databases(4)
    init_cluster(cluster(dsns[:2]), slots=4)
    init_cluster(cluster(dsns[2:3], name="bank"), slots=4)
    refused: dict[str, Callable[[], object]] = {
        "made with 4 slots, not 8": lambda: init_cluster(cluster(dsns[:2]), slots=8),
        "belongs to the cluster 'bank'": lambda: init_cluster(cluster([*dsns[:2], dsns[2]])),
        "in truth the shard 'pg2'": lambda: init_cluster(cluster([dsns[1], dsns[0]])),
        "also has pg2": lambda: init_cluster(cluster(dsns[:1])),
        "belongs to the cluster 'shop', and": lambda: init_cluster(cluster([*dsns[:2], dsns[3]], name="other")),
    }
    for message, attempt in refused.items():
        with pytest.raises(ClusterMismatch, match=message):
            attempt()
    assert not exists(ShardConfig("pg4", dsns[3]))


def test_two_clusters_of_one_name_do_not_mix(databases: Databases) -> None:
    dsns = databases(2)
    init_cluster(cluster(dsns[:1]), slots=4)
    second = ClusterConfig("shop", (ShardConfig("pg2", dsns[1]),))
    init_cluster(second, slots=4)
    with pytest.raises(ClusterMismatch, match="two clusters, both named 'shop'"):
        init_cluster(cluster(dsns))


def test_two_names_for_one_database_are_noticed(database: str) -> None:
    twice = cluster([database, make_conninfo(database, connect_timeout=9)])
    with pytest.raises(ConfigError, match="that of another shard"):
        init_cluster(twice, slots=4)
    assert not exists(twice.shards[0])


def test_every_shard_must_be_reachable(databases: Databases) -> None:
    config = cluster([*databases(1), "host=127.0.0.1 port=1"])
    with pytest.raises(ShardUnavailable, match="'pg2'"):
        init_cluster(config, slots=4)
    assert not exists(config.shards[0])


def test_fewer_slots_than_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose 2 to 4096"):
        init_cluster(cluster(["host=a", "host=b"]), slots=1)


def test_a_database_that_can_not_hold_every_text_is_refused(database: str) -> None:
    name = "narrow"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"create database {name} encoding 'LATIN1' template template0 locale 'C'".encode())
        try:
            config = cluster([make_conninfo(database, dbname=name)])
            with pytest.raises(ConfigError, match=r"encoding LATIN1, .* create database narrow encoding 'UTF8'"):
                init_cluster(config)
        finally:
            conn.execute(f"drop database {name} with (force)".encode())
