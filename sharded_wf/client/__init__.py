"""Asks for work: start, wait, send, cancel, look. It knows shards and rows, never executors, and opens no user code but
the types of arguments and results.
"""

from __future__ import annotations

from sharded_wf.client.client import Client
from sharded_wf.client.handle import Handle
from sharded_wf.client.repair import Failed, Repaired

__all__ = ["Client", "Failed", "Handle", "Repaired"]
