"""What an executor asks now and then of the cluster's affairs: whether the shard's copy of the map has changed, which
slots to give back, and whether a shard has another primary."""

from __future__ import annotations

from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.postgres.timeline import Timeline

_WATCH = load("moves")["watch_moves"]

MOVES_CHANNEL = "sharded_wf_moves"
"""Notified when a slot is to be given back, or has moved."""


def watch_moves(stale_seconds: float) -> Statement:
    """Ask; a coordinator that was silent for ``stale_seconds`` is not listened to."""
    return Statement(_WATCH, "", (binary.int4(int(stale_seconds)),))


def moves_of(result: Result) -> tuple[int, frozenset[int], dict[str, Timeline]]:
    """The answer: a number that grows with each change of the map, the slots to give back, and each shard's timeline
    as far as this one has heard."""
    ((version, leaving, timelines),) = result.rows()
    heard: dict[str, Timeline] = {}
    for shard, *numbers in map(str.split, binary.read_text_array(timelines)):
        heard[shard] = Timeline(*map(int, numbers))
    return binary.read_int(version), frozenset(map(int, binary.read_text_array(leaving))), heard
