"""Runs work: claim -> run -> flush. The bridge between the Python wing, which replays code, and the Postgres wing.

``Executor`` is the process; it has one ``ShardExecutor`` for each shard that it serves, and nothing is shared between
those but the capacity, so that a shard that is away delays nobody else.
"""

from __future__ import annotations

from sharded_wf.executor.executor import Executor

__all__ = ["Executor"]
