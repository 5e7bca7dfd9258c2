"""The numbers of slots. A number names a set of hashes, for ever.

A cluster begins with ``base`` slots: slot 7 of 48 holds the hashes that leave the remainder 7 by 48. Splitting it ends
slot 7 and makes two others, of the hashes that leave the remainders 7 and 55 by 96. These get numbers of their own, 55
and 103: after the numbers of one width come those of twice that width. So no number ever comes to mean other hashes,
and whoever still goes by an old map asks for a slot that is not there, never for one that is and holds something else.
"""

from __future__ import annotations


def width_of(slot: int, base: int) -> int:
    """By how much a hash is divided to find out whether it is in the slot: ``base``, doubled with each split."""
    return base << ((slot // base + 1).bit_length() - 1)


def remainder_of(slot: int, base: int) -> int:
    """What the hashes of the slot leave, divided by its width."""
    return slot + base - width_of(slot, base)


def children_of(slot: int, base: int) -> tuple[int, int]:
    """The two slots that a split makes of the slot: of the lower and of the higher remainder."""
    width = width_of(slot, base)
    return slot + width, slot + 2 * width


def parent_of(slot: int, base: int) -> int | None:
    """The slot that was split to make this one; None if the cluster began with it."""
    if slot < base:
        return None
    half = width_of(slot, base) // 2
    return half - base + remainder_of(slot, base) % half


def slot_schema(slot: int) -> str:
    """The name of the slot's schema: ``wf_0007`` for slot 7."""
    return f"wf_{slot:04d}"
