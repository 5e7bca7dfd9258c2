"""Where the cluster is: what is understood, what is refused, and that every refusal says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharded_wf.config import ClusterConfig, ShardConfig, find_config
from sharded_wf.errors import ConfigError, NoClusterConfigured

DSN = "postgresql://wf:secret@pg1a,pg1b/wf?target_session_attrs=read-write"
GOOD = f"""
[cluster]
name = "shop"
[[shard]]
name = "pg1"
dsn = "{DSN}"
[[shard]]
name = "pg2"
dsn_env = "PG2_DSN"
"""
ENVIRON = {"PG2_DSN": "host=pg2 dbname=wf"}


def write(directory: Path, text: str) -> Path:
    path = directory / "shards.toml"
    path.write_text(text)
    return path


def test_a_file_names_the_shards(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = find_config(path, environ=ENVIRON)
    assert config == ClusterConfig("shop", (ShardConfig("pg1", DSN), ShardConfig("pg2", "host=pg2 dbname=wf")))
    assert config.source == str(path)
    assert config.shard("pg2").dsn == "host=pg2 dbname=wf"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")  # as some editors save it
    assert find_config(path, environ=ENVIRON) == config


def test_a_citus_cluster_is_named_by_its_coordinator(tmp_path: Path) -> None:
    path = write(tmp_path, '[cluster]\nname = "shop"\n[citus]\ncoordinator_env = "C"\n')
    config = find_config(path, environ={"C": DSN})
    assert (config.coordinator, config.shards) == (DSN, ())
    assert DSN not in repr(config)  # it may hold a password


@pytest.mark.parametrize("dsn", [DSN, "postgres://h/d", "host=/tmp dbname=wf", "dbname=wf"])
def test_a_dsn_is_a_cluster_of_one_shard(dsn: str) -> None:
    assert find_config(dsn, environ={}) == ClusterConfig("main", (ShardConfig("main", dsn),))


def test_the_argument_wins_over_the_variable_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoClusterConfigured) as caught:
        find_config(environ={})
    for choice in ("SHARDED_WF_CONFIG", "shards.toml", "DSN", str(tmp_path)):
        assert choice in str(caught.value)
    write(tmp_path, GOOD)
    assert find_config(environ=ENVIRON).name == "shop"
    environ = {**ENVIRON, "SHARDED_WF_CONFIG": "postgresql://variable/wf"}
    assert find_config(environ=environ).shards[0].dsn == "postgresql://variable/wf"
    assert find_config("postgresql://argument/wf", environ=environ).shards[0].dsn == "postgresql://argument/wf"
    given = ClusterConfig("given", (ShardConfig("a", "host=a"),))
    assert find_config(given, environ=environ) is given


def test_embedded_servers_are_never_found_by_accident() -> None:
    made = ClusterConfig("private", (ShardConfig("a", "host=a"),))
    asked: list[str] = []

    def embedded(rest: str) -> ClusterConfig:
        asked.append(rest)
        return made

    assert find_config("embedded:", embedded=embedded, environ={}) is made
    assert find_config("embedded:4", embedded=embedded, environ={}) is made
    assert asked == ["", "4"]
    with pytest.raises(ConfigError, match="the argument says 'embedded:'"):
        find_config("embedded:", environ={})
    with pytest.raises(ConfigError, match="SHARDED_WF_CONFIG says 'embedded:'"):
        find_config(embedded=embedded, environ={"SHARDED_WF_CONFIG": "embedded:"})


SHARD = '[[shard]]\nname = "pg1"\n'
CLUSTER = '[cluster]\nname = "shop"\n'
REFUSED = {
    "no cluster name": (f'{SHARD}dsn = "host=a"', "[cluster]", 'name = "shop"'),
    "cluster is no table": ('cluster = "shop"', "[cluster]", 'name = "shop"'),
    "unknown key at the top": (f"{CLUSTER}[shards]", "'shards'", "cluster, shard, citus, outbox, retention"),
    "unknown key of the cluster": (f"{CLUSTER}slots = 3", "'slots'", "name"),
    "unknown key of a shard": (f'{CLUSTER}{SHARD}dns = "host=a"', "'dns'", "name, dsn, dsn_env, weight"),
    "citus and shards": (
        f'{CLUSTER}{SHARD}dsn = "host=a"\n[citus]\ncoordinator = "host=c"',
        "[citus]",
        "one of the two",
    ),
    "citus without a coordinator": (f"{CLUSTER}[citus]", "[citus]", "coordinator_env"),
    "an unknown key of citus": (f'{CLUSTER}[citus]\nworkers = "a"', "'workers'", "coordinator, coordinator_env"),
    "no dsn of a coordinator": (f'{CLUSTER}[citus]\ncoordinator = "host"', "[citus] coordinator", "no valid DSN"),
    "no shards": (CLUSTER, "no shard", "[[shard]]"),
    "one bracket": (f'{CLUSTER}[shard]\nname = "pg1"', "[[shard]]", "two brackets"),
    "shard without a name": (f'{CLUSTER}[[shard]]\ndsn = "host=a"', "[[shard]]", 'name = "pg1"'),
    "no dsn": (CLUSTER + SHARD, "'pg1'", "dsn_env"),
    "both dsn and dsn_env": (f'{CLUSTER}{SHARD}dsn = "host=a"\ndsn_env = "A"', "'pg1'", "one of the two"),
    "variable not set": (f'{CLUSTER}{SHARD}dsn_env = "NOT_SET"', "NOT_SET", "postgresql://"),
    "the same name twice": (f'{CLUSTER}{SHARD}dsn = "host=a"\n{SHARD}dsn = "host=b"', "'pg1'", "twice"),
    "the same dsn twice": (
        f'{CLUSTER}{SHARD}dsn = "host=a"\n[[shard]]\nname = "pg2"\ndsn = "host=a"',
        "'pg2'",
        "'pg1'",
    ),
    "a number for a name": (f"{CLUSTER}[[shard]]\nname = 1", "name must be text", 'name = "1"'),
    "an odd name": (f'{CLUSTER}[[shard]]\nname = "pg 1"\ndsn = "host=a"', "'pg 1'", "1 to 63 letters"),
    "an empty cluster name": (f'[cluster]\nname = ""\n{SHARD}dsn = "host=a"', "[cluster] name", "1 to 63 letters"),
    "no dsn at all in the dsn": (f'{CLUSTER}{SHARD}dsn = "nonsense"', "'pg1'", "postgresql://user@host/database"),
    "an unknown parameter": (f'{CLUSTER}{SHARD}dsn = "postgresql://h/d?hots=1"', "'pg1'", '"hots"'),
    "a weight that is no number": (f'{CLUSTER}{SHARD}dsn = "host=a"\nweight = "2"', "'pg1'", "weight = 2"),
    "a negative weight": (f'{CLUSTER}{SHARD}dsn = "host=a"\nweight = -1', "'pg1'", "0 or more"),
    "no weight at all": (f'{CLUSTER}{SHARD}dsn = "host=a"\nweight = 0', "weight 0", "give one of them more"),
    "an outbox with a weight": (
        f'{CLUSTER}{SHARD}dsn = "host=a"\n[[outbox]]\nname = "o"\ndsn = "host=b"\nweight = 1',
        "'weight'",
        "dsn_env",
    ),
    "no toml": ("[cluster", "TOML", "shards.toml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_file_and_key_and_what_to_write(case: str, tmp_path: Path) -> None:
    text, key, advice = REFUSED[case]
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_file(path, environ={})
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert advice in message


@pytest.mark.parametrize("argument", ["", "nosuch.toml", "mysql://h/d"])
def test_what_is_no_cluster_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://user@host/database"):
        find_config(argument, environ={})


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        find_config(tmp_path, environ={})


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:sec%ret@h/d", "postgresql://u:secret@h/d?=&x", "password=secret nonsense"]
)
def test_passwords_are_not_shown(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_config(dsn, environ={})
    assert "sec" not in str(caught.value)


def test_a_shard_is_shown_by_its_address() -> None:
    assert "secret" not in repr(ShardConfig("pg1", DSN))
    assert ShardConfig("pg1", DSN).address == "pg1a,pg1b/wf"
    assert ShardConfig("pg1", "host=a,b port=1 dbname=d").address == "a:1,b:1/d"
    assert ShardConfig("pg1", "postgresql://u@a:1,b:2/d").address == "a:1,b:2/d"
    assert ShardConfig("pg1", "host=/run/pg user=u").address == "/run/pg/u"


def test_weights(tmp_path: Path) -> None:
    text = f'{CLUSTER}{SHARD}dsn = "host=a"\nweight = 2\n[[shard]]\nname = "pg2"\ndsn = "host=b"\n'
    assert [shard.weight for shard in ClusterConfig.from_file(write(tmp_path, text)).shards] == [2.0, 1.0]


def test_an_unknown_shard_is_named_with_those_that_exist() -> None:
    config = ClusterConfig("shop", (ShardConfig("pg1", "host=a"), ShardConfig("pg2", "host=b")))
    with pytest.raises(ConfigError, match=r"'pg3'; there are pg1, pg2"):
        config.shard("pg3")
