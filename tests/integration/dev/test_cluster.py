"""Embedded clusters: joined by others, kept and found again, refused when they don't fit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import psycopg
import pytest

from sharded_wf.config import ClusterConfig
from sharded_wf.dev.cluster import EmbeddedCluster
from sharded_wf.errors import ConfigError, EmbeddedServerError


def test_kept_shared_and_found_again(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with EmbeddedCluster(place, shards=2, slots=4) as first:
        assert [shard.name for shard in first.config.shards] == ["pg1", "pg2"]
        assert first.config_path is not None
        assert ClusterConfig.from_file(first.config_path) == first.config
        assert (place / ".gitignore").read_text() == "*\n"
        with psycopg.connect(first.config.shards[0].dsn) as conn:
            conn.execute("create table kept ()")
        with EmbeddedCluster(place) as second:
            assert second.config == first.config
        assert all(server.is_running() for server in first.servers)
        with pytest.raises(ConfigError, match="holds a cluster of 2 shards, not 3"):
            EmbeddedCluster(place, shards=3).open()
    with EmbeddedCluster(place) as again, psycopg.connect(again.config.shards[0].dsn) as conn:
        conn.execute("select from kept")


def test_what_the_file_should_not_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "shards.toml").write_text("nonsense")
    with pytest.raises(ConfigError, match="is not what sharded-wf wrote there"):
        EmbeddedCluster(tmp_path).open()


def test_outside_its_block_a_cluster_has_no_config() -> None:
    with pytest.raises(EmbeddedServerError, match="context manager"):
        _ = EmbeddedCluster().config
    with pytest.raises(ConfigError, match="choose 1 to"):
        EmbeddedCluster(shards=0)


def test_the_file_is_plain_toml(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path / "data", shards=1, slots=2) as cluster:
        assert cluster.config_path is not None
        written = tomllib.loads(cluster.config_path.read_text())
    assert written["cluster"] == {"name": "embedded"}
    assert len(written["shard"]) == 1
