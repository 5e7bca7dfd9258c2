"""Postgres servers of our own on this machine, for ``sharded-wf dev``, the demo, the benchmarks and the tests.

Import from here: :class:`EmbeddedServer` and :func:`reachable_directory`. Everything that production needs lives
elsewhere; nothing outside the tests, the command line and ``connect("embedded:")`` may import this room.
"""

from __future__ import annotations

from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.dev.places import reachable_directory

__all__ = ["EmbeddedServer", "reachable_directory"]
