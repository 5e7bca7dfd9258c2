"""What an executor asks now and then of the cluster's affairs: whether the shard's copy of the map has changed, which
slots to give back, and whether a shard has another primary."""

from __future__ import annotations

from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.postgres.timeline import Timeline

_WATCH = load("moves")["watch_moves"]
_READ_TIMELINES = load("timelines")["read_all_timelines"]

MOVES_CHANNEL = "sharded_wf_moves"
"""Notified when a slot is to be given back, or has moved."""


def watch_moves(stale_seconds: float) -> Statement:
    """Ask; a coordinator that was silent for ``stale_seconds`` is not listened to."""
    return Statement(_WATCH, "", (binary.int4(int(stale_seconds)),))


def read_timelines() -> Statement:
    """Ask which timelines the shards are on, as far as this one has heard."""
    return Statement(_READ_TIMELINES, "")


def timelines_of(result: Result) -> dict[str, Timeline]:
    """The answer, by the name of the shard."""
    ((names, *columns),) = result.rows()
    rows = zip(*(map(int, binary.read_text_array(column)) for column in columns), strict=True)
    return {name: Timeline(*row) for name, row in zip(binary.read_text_array(names), rows, strict=True)}


def moves_of(result: Result) -> tuple[int, frozenset[int]]:
    """The answer: a number that grows with each change of the map, and the slots to give back."""
    ((version, leaving),) = result.rows()
    return binary.read_int(version), frozenset(map(int, binary.read_text_array(leaving)))
