"""Which slots move where, so that every shard has its share; and which are split. Pure.

As few moves as possible: only shards that have too many slots give some away, and only those that have too few get
some.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sharded_wf.routing import width_of


def shares(slots: int, weights: Mapping[str, float], held: Mapping[str, int]) -> dict[str, int]:
    """How many of the slots each shard should have: in proportion to its weight, the rest to the largest remainders; of
    equal ones, to shards that hold more already, because each move has its price.

    ``ValueError`` if no weight is positive, or one is negative."""
    total = sum(weights.values())
    if total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("weights are 0 or more, and one is more than 0")
    exact = {shard: slots * weight / total for shard, weight in weights.items()}
    given = {shard: int(share) for shard, share in exact.items()}
    rest = sorted(
        weights, key=lambda shard: (round(given[shard] - exact[shard], 9), given[shard] - held.get(shard, 0), shard)
    )
    for shard in rest[: slots - sum(given.values())]:
        given[shard] += 1
    return given


def rebalance(
    placement: Mapping[int, str], weights: Mapping[str, float], *, fixed: Collection[int] = ()
) -> list[tuple[int, str]]:
    """The moves (slot, target) that give every shard its share. ``placement[slot]`` is where a slot lies; a shard
    without a weight gives all its slots away. ``fixed``: slots that stay where they are, such as those that are being
    moved."""
    held: dict[str, list[int]] = {shard: [] for shard in weights}
    for slot, shard in placement.items():
        held.setdefault(shard, []).append(slot)
    wanted = shares(len(placement), weights, {shard: len(slots) for shard, slots in held.items()})
    moves: list[tuple[int, str]] = []
    free = [
        slot
        for shard, slots in held.items()
        for slot in [slot for slot in reversed(slots) if slot not in fixed][: max(len(slots) - wanted.get(shard, 0), 0)]
    ]
    short = {shard: wanted[shard] - len(held[shard]) for shard in wanted if wanted[shard] > len(held[shard])}
    for slot in sorted(free):
        # To whoever lacks most, so that several moves at once fall on several shards.
        target = max(short, key=lambda shard: (short[shard], shard), default=None)
        if target is None:
            break
        moves.append((slot, target))
        short[target] -= 1
        if not short[target]:
            del short[target]
    return moves


def drain(placement: Mapping[int, str], shard: str, weights: Mapping[str, float]) -> list[tuple[int, str]]:
    """The moves that empty a shard, its slots dealt out to the others by their weights and by what they hold."""
    others = {name: weight for name, weight in weights.items() if name != shard and weight > 0}
    if not others:
        raise ValueError("there is no other shard to take the slots")
    count = {name: sum(1 for at in placement.values() if at == name) for name in others}
    moves: list[tuple[int, str]] = []
    for slot, at in placement.items():
        if at == shard:
            target = min(others, key=lambda name: ((count[name] + 1) / others[name], name))
            count[target] += 1
            moves.append((slot, target))
    return moves


def doubling(placement: Mapping[int, str], base: int) -> list[int]:
    """The slots to split so that there are twice as many: those that were split least often. After a doubling that was
    cut off, or some slots that were split on their own, these are the ones that are left."""
    narrowest = min(width_of(slot, base) for slot in placement)
    return [slot for slot in placement if width_of(slot, base) == narrowest]
