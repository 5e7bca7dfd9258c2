"""What an executor asks about moves: whether the shard's copy of the map has changed, and which slots to give back."""

from __future__ import annotations

from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_WATCH = load("moves")["watch_moves"]

MOVES_CHANNEL = "sharded_wf_moves"
"""Notified when a slot is to be given back, or has moved."""


def watch_moves(stale_seconds: float) -> Statement:
    """Ask; a coordinator that was silent for ``stale_seconds`` is not listened to."""
    return Statement(_WATCH, "", (binary.int4(int(stale_seconds)),))


def moves_of(result: Result) -> tuple[int, frozenset[int]]:
    """The answer: a number that grows with each change of the map, and the slots to give back."""
    ((version, leaving),) = result.rows()
    return binary.read_int(version), frozenset(map(int, binary.read_text_array(leaving)))
