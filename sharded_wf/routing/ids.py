"""The IDs that we make: UUIDv7, as text.

Ordered by time, so that the inserts of one moment fall on the same index pages. The order is to the microsecond of the
clock; IDs of the same microsecond have none. The random part comes from a generator seeded from the system's entropy,
which is far faster than asking the system each time: IDs are unique, they are no secrets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection

from sharded_wf.clock import Clock
from sharded_wf.routing.shard_map import ShardMap

_generator = random.Random()
_random_bits = _generator.getrandbits
if hasattr(os, "register_at_fork"):
    # A forked child would draw its parent's numbers once more.
    os.register_at_fork(after_in_child=_generator.seed)

_VARIANT = 0x8000_0000_0000_0000
# The third group: the version, and the microsecond within the millisecond scaled to 12 bits (RFC 9562, 6.2, method 3).
_THIRD_GROUPS = tuple(f"7{microsecond * 4096 // 1000:03x}" for microsecond in range(1000))


def new_id(clock: Clock) -> str:
    """A new UUIDv7 as 36 characters, later ones sorting after earlier ones."""
    ms, microsecond = divmod(clock.now_us(), 1000)
    tail = (_VARIANT | _random_bits(62)).to_bytes(8).hex("-", 6)
    return f"{ms.to_bytes(6).hex('-', -4)}-{_THIRD_GROUPS[microsecond]}-{tail}"


def new_id_avoiding(clock: Clock, shard_map: ShardMap, unhealthy: Collection[int]) -> str:
    """A new ID whose slot is none of the ``unhealthy`` ones, drawn again until it is so. If every slot is unhealthy,
    any ID: then the caller learns from its shard why nothing can be started."""
    made = new_id(clock)
    if unhealthy and not all(slot in unhealthy for slot in shard_map.placement):
        while shard_map.slot_of(made) in unhealthy:
            made = new_id(clock)
    return made
