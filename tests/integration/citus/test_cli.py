"""The command line on a Citus cluster."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest

from sharded_wf.cluster.citus import move_rows
from sharded_wf.cluster.directory import load_map
from tests.integration.cli.conftest import command_line
from tests.support.cluster import TestCluster

__all__ = ["command_line"]
Run = Callable[..., tuple[int, str, str]]

REFUSED = {
    ("add", "pg3", "--dsn", "host=x"): "citus_add_node",
    ("drain", "{first}"): "citus_set_node_property",
    ("split",): "can't be split",
    ("rebalance", "--weights", "{first}=2"): "strategies of its own",
}


@pytest.fixture
def shards(two_shards: TestCluster, command_line: Run) -> Run:
    """``sharded-wf shards …`` on the cluster."""
    path = str(two_shards.config_file())
    return lambda *words: command_line("shards", *words, "--cluster", path)


@pytest.mark.parametrize(("words", "told"), REFUSED.items(), ids=lambda value: value[0])
def test_what_makes_no_sense_is_refused_with_what_to_do(
    shards: Run, two_shards: TestCluster, words: tuple[str, ...], told: str
) -> None:
    code, _, err = shards(*(word.format(first=two_shards.name(1)) for word in words))
    assert (code, told in err) == (2, True)


def test_slots_that_citus_has_moved_are_shown_and_put_right(shards: Run, two_shards: TestCluster) -> None:
    everybody = (two_shards.name(1), two_shards.name(2), "coordinator")
    assert shards("migrate") == (0, "".join(f"{name}: up to date\n" for name in everybody), "")
    assert shards("status")[0] == 0
    slots = load_map(two_shards.config).shard_map.slots_of(two_shards.name(1))
    assert two_shards.config.coordinator is not None
    with psycopg.connect(two_shards.config.coordinator, autocommit=True, cursor_factory=psycopg.RawCursor) as conn:
        move_rows(conn, slots[0], two_shards.config.shards[1])
    code, out, _ = shards("status")
    assert (code, f"Citus has moved the rows of slot {slots[0]}" in out) == (0, True)
    assert json.loads(shards("status", "--json")[1])["astray"] == {str(slots[0]): two_shards.name(2)}
    code, out, _ = shards("verify", str(slots[0]))
    assert (code, "rebalance" in out) == (1, True)
    code, out, err = shards("rebalance", "--yes")
    assert (code, f"slot {slots[0]} is on {two_shards.name(2)} now" in out, err) == (0, True, "")
    assert shards("verify", str(slots[0]))[0] == 0
    # Citus would give it back, for balance; so does the same command, now that it is its turn to move rows.
    code, out, err = shards("rebalance", "--yes")
    assert (code, err) == (0, "")
    assert "Citus has moved" not in shards("status")[1]
