"""The shard map: from a hash to its slot, and from the slot to its shard.

Slots are looked up here and computed nowhere else, because they are not for ever: each can be split in two
(``routing/slots.py``), whenever its time comes, before the others or after them. The map is a table as wide as the
slot that was split most often. While no slot was split it says ``hash % base``, and at no time does it cost more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sharded_wf.limits import SLOTS_MAX
from sharded_wf.routing.keys import hash_of
from sharded_wf.routing.slots import remainder_of, width_of

CONTROL_SCHEMA = "wf_control"
"""The schema, one on each shard, that holds the shard's executors, migrations and copy of the shard map."""


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Which shard holds which slot, at one epoch. Immutable: a newer map replaces it as a whole.

    ``epoch`` only grows, and the higher one is right. ``placement[slot]`` is the name of the shard that holds the slot,
    for every slot that there is, ascending. ``base`` is the number of slots that the cluster was made with (0: as many
    as there are now). ``ValueError`` for a map in which a hash has no slot, or two, or which is wider than
    ``SLOTS_MAX``.
    """

    epoch: int
    placement: Mapping[int, str]
    base: int = 0
    _table: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _width: int = field(init=False, repr=False, compare=False)
    _by_shard: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        placement = {slot: self.placement[slot] for slot in sorted(self.placement)}
        base = self.base or len(placement)
        if not placement or min(placement) < 0:
            raise ValueError("a shard map has slots, and they are numbered from 0")
        width = max(width_of(slot, base) for slot in placement)
        if width > SLOTS_MAX:
            raise ValueError(f"a shard map is {SLOTS_MAX} slots wide at most, not {width}")
        table = [-1] * width
        by_shard: dict[str, list[int]] = {}
        for slot, shard in placement.items():
            by_shard.setdefault(shard, []).append(slot)
            for remainder in range(remainder_of(slot, base), width, width_of(slot, base)):
                if table[remainder] >= 0:
                    raise ValueError(f"in this shard map slots {table[remainder]} and {slot} hold the same hashes")
                table[remainder] = slot
        if -1 in table:
            raise ValueError(f"this shard map has no slot for hashes that leave {table.index(-1)} by {width}")
        put = object.__setattr__
        put(self, "placement", placement)
        put(self, "base", base)
        put(self, "_table", tuple(table))
        put(self, "_width", width)
        put(self, "_by_shard", {shard: tuple(slots) for shard, slots in by_shard.items()})

    @property
    def slots(self) -> int:
        """How many slots there are now. Their numbers are those of ``placement``."""
        return len(self.placement)

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that hold at least one slot, in the order of their first slots."""
        return tuple(self._by_shard)

    def slot_of_hash(self, hashed: int) -> int:
        """The slot of a hash (0 to 2**32 - 1). The one place where this is decided."""
        return self._table[hashed % self._width]

    @property
    def width(self) -> int:
        """By what a hash is divided: the remainder decides."""
        return self._width

    def remainders_of(self, slots: Collection[int]) -> frozenset[int]:
        """The remainders of hashes that lead to these slots."""
        return frozenset(remainder for remainder, slot in enumerate(self._table) if slot in slots)

    def slot_of(self, workflow_id: str) -> int:
        """The slot that holds the workflow."""
        return self._table[hash_of(workflow_id) % self._width]  # slot_of_hash, written out: it runs once a start

    def shard_of_slot(self, slot: int) -> str:
        """The name of the shard that holds the slot; ``KeyError`` if there is no such slot."""
        return self.placement[slot]

    def shard_of(self, workflow_id: str) -> str:
        """The name of the shard that holds the workflow."""
        return self.placement[self.slot_of(workflow_id)]

    def slots_of(self, shard: str) -> tuple[int, ...]:
        """The slots on the shard, ascending; empty if it holds none."""
        return self._by_shard.get(shard, ())
