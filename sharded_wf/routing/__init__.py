"""Which slot and which shard a workflow ID belongs to. Pure: no I/O, no time but the clock that is passed in.

Other rooms import what is named here, and nothing else of this room. The rules are pinned by golden vectors
(``tests/unit/routing``): a changed hash would look for existing workflows in the wrong slots.
"""

from __future__ import annotations

from sharded_wf.routing.ids import IdMaker, new_id
from sharded_wf.routing.keys import HASH_NAME, HASH_SEED, hash_of, routing_key
from sharded_wf.routing.shard_map import CONTROL_SCHEMA, ShardMap
from sharded_wf.routing.slots import children_of, parent_of, remainder_of, slot_schema, width_of

__all__ = [
    "CONTROL_SCHEMA",
    "HASH_NAME",
    "HASH_SEED",
    "IdMaker",
    "ShardMap",
    "children_of",
    "hash_of",
    "new_id",
    "parent_of",
    "remainder_of",
    "routing_key",
    "slot_schema",
    "width_of",
]
