"""The IDs that we make: UUIDv7, as text.

Ordered by time, so that the inserts of one moment fall on the same index pages. The order is to the microsecond of the
clock, of those that an ``IdMaker`` makes to the millisecond. The random part comes from a generator seeded from the
system's entropy, which is far faster than asking the system each time: IDs are unique, they are no secrets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

from sharded_wf.clock import Clock, Microseconds
from sharded_wf.limits import ID_PREFIX_US, ID_TURN_US, IDS_PER_TURN_MAX, SLOTS_PER_TURN_MIN
from sharded_wf.routing.keys import HASH_SEED, hash_of_key
from sharded_wf.routing.shard_map import ShardMap

_generator = random.Random()
_random_bits = _generator.getrandbits
_process = object()
"""Of whom the numbers are that were drawn: a forked child must not draw its parent's once more."""


def _begin_anew() -> None:
    global _process
    _generator.seed()
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

_VARIANT = 0x8000_0000_0000_0000
_ENDINGS = tuple(f"{end:03x}".encode() for end in range(4096))
# The third group: the version, and the microsecond within the millisecond scaled to 12 bits (RFC 9562, 6.2, method 3).
_THIRD_GROUPS = tuple(f"7{microsecond * 4096 // 1000:03x}" for microsecond in range(1000))


def new_id(clock: Clock) -> str:
    """A new UUIDv7 as 36 characters, later ones sorting after earlier ones."""
    return _id_at(clock.now_us())


def _id_at(now_us: Microseconds) -> str:
    ms, microsecond = divmod(now_us, 1000)
    tail = (_VARIANT | _random_bits(62)).to_bytes(8).hex("-", 6)
    return f"{ms.to_bytes(6).hex('-', -4)}-{_THIRD_GROUPS[microsecond]}-{tail}"


class IdMaker:
    """Makes IDs that fall into the same few slots of each shard for a few milliseconds, then into the next few.

    What is started at about the same time is then written, claimed and finished with a statement for each of a few
    slots, not of all of them: small batches cost a fraction. By the clock, so that many clients take turns together.
    """

    def __init__(self, clock: Clock, shard_map: ShardMap, avoided: frozenset[int] = frozenset()) -> None:
        """``avoided``: slots that no ID is to fall into, unless they are all: then the caller learns from their shards
        why nothing can be started."""
        self._clock = clock
        self.shard_map = shard_map
        self.avoided = avoided
        by_shard: dict[str, list[int]] = {}
        for slot, shard in sorted(shard_map.placement.items()):
            if slot not in avoided:
                by_shard.setdefault(shard, []).append(slot)
        fewest = min(map(len, by_shard.values()), default=0)
        turns = max(1, fewest // SLOTS_PER_TURN_MIN)
        self._width = shard_map.width
        self._turns = [
            shard_map.remainders_of({slot for slots in by_shard.values() for slot in slots[turn::turns]})
            for turn in range(turns)
        ]
        self._any = (turns == 1 and not avoided) or not by_shard
        self._turn = 0
        self._made = 0
        self._search: tuple[Microseconds, object, bytes, Iterator[bytes]] = (-ID_PREFIX_US, None, b"", iter(()))

    def __call__(self) -> str:
        """A new ID, as ``new_id`` makes it. Those of one moment differ in their last digits alone: of one prefix many
        IDs fall into the right slots, and to try the next ending costs least."""
        now_us = self._clock.now_us()
        if self._any:
            return _id_at(now_us)
        turn = now_us // ID_TURN_US
        if turn != self._turn:
            self._turn, self._made = turn, 0
        self._made += 1
        wanted = self._turns[(turn + self._made // IDS_PER_TURN_MAX) % len(self._turns)]
        width = self._width
        since_us, process, prefix, endings = self._search
        while True:
            if process is _process and 0 <= now_us - since_us < ID_PREFIX_US:
                for ending in endings:
                    if hash_of_key(prefix + ending, HASH_SEED) % width in wanted:
                        return (prefix + ending).decode()
            since_us, process, prefix, endings = now_us, _process, _id_at(now_us)[:-3].encode(), iter(_ENDINGS)
            self._search = since_us, process, prefix, endings
