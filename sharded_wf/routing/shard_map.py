"""The shard map: from a hash to its slot, and from the slot to its shard.

Slots are looked up here and computed nowhere else, because their number is not for ever: a cluster begins with ``base``
slots and grows by splitting them one after another (linear hashing). Splitting slot s makes a new slot s + width, where
the width is ``base`` doubled as often as it fits; a hash moves only if its own slot is the one that split. While no
slot was split this is ``hash % base``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sharded_wf.limits import SLOTS_MAX
from sharded_wf.routing.keys import hash_of

CONTROL_SCHEMA = "wf_control"
"""The schema, one on each shard, that holds the shard's executors, migrations and copy of the shard map."""


def slot_schema(slot: int) -> str:
    """The name of the slot's schema: ``wf_0007`` for slot 7."""
    return f"wf_{slot:04d}"


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Which shard holds which slot, at one epoch. Immutable: a newer map replaces it as a whole.

    ``epoch`` only grows, and the higher one is right. ``placement[slot]`` is the name of the shard that holds the slot.
    ``base`` is the number of slots that the cluster was made with (0: as many as there are now). A map without slots,
    or with fewer than its base or more than ``SLOTS_MAX``, is a ``ValueError``.
    """

    epoch: int
    placement: tuple[str, ...]
    base: int = 0
    _wide: int = field(init=False, repr=False, compare=False)
    _width: int = field(init=False, repr=False, compare=False)
    _count: int = field(init=False, repr=False, compare=False)
    _by_shard: Mapping[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.placement)
        base = self.base or count
        if not 0 < base <= count <= SLOTS_MAX:
            raise ValueError(f"a shard map has 1 to {SLOTS_MAX} slots and at least its base, not {count} of {base}")
        width = base
        while width * 2 <= count:
            width *= 2
        by_shard: dict[str, list[int]] = {}
        for slot, shard in enumerate(self.placement):
            by_shard.setdefault(shard, []).append(slot)
        put = object.__setattr__
        put(self, "base", base)
        put(self, "_width", width)
        put(self, "_wide", width * 2)
        put(self, "_count", count)
        put(self, "_by_shard", {shard: tuple(slots) for shard, slots in by_shard.items()})

    @property
    def slots(self) -> int:
        """How many slots there are now; they are numbered from 0."""
        return self._count

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that hold at least one slot, in the order of their first slots."""
        return tuple(self._by_shard)

    def slot_of_hash(self, hashed: int) -> int:
        """The slot of a hash (0 to 2**32 - 1). The one place where this is decided."""
        slot = hashed % self._wide
        return slot if slot < self._count else slot - self._width

    def slot_of(self, workflow_id: str) -> int:
        """The slot that holds the workflow."""
        slot = hash_of(workflow_id) % self._wide  # slot_of_hash, written out: this runs once for every start
        return slot if slot < self._count else slot - self._width

    def shard_of_slot(self, slot: int) -> str:
        """The name of the shard that holds the slot; ``IndexError`` if there is no such slot."""
        if slot < 0:
            raise IndexError(f"there is no slot {slot}")
        return self.placement[slot]

    def shard_of(self, workflow_id: str) -> str:
        """The name of the shard that holds the workflow."""
        return self.placement[self.slot_of(workflow_id)]

    def slots_of(self, shard: str) -> tuple[int, ...]:
        """The slots on the shard, ascending; empty if it holds none."""
        return self._by_shard.get(shard, ())
