"""One slot, looked at on every shard: where it lives, and whether the two sides of a move are the same."""

from __future__ import annotations

from dataclasses import dataclass

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.fanout import ask_each
from sharded_wf.config import ClusterConfig
from sharded_wf.limits import STATUS_DEADLINE_SECONDS
from sharded_wf.postgres.migrate import slots_present
from sharded_wf.reshard.citus import astray
from sharded_wf.reshard.fleet import check_slot, driver, unfinished_moves
from sharded_wf.reshard.record import Move
from sharded_wf.reshard.verify import TableCheck


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found about one slot. ``well``: it lives exactly once (or nowhere, between retirement and arrival, or
    when it is split), and a copy that there is has the same rows."""

    slot: int
    well: bool
    verdict: str
    homes: tuple[str, ...]
    checks: tuple[TableCheck, ...] = ()


def verify_slot(config: ClusterConfig, slot: int) -> Verified:
    """Look at a slot on every shard; compare both sides of its move, if one is unfinished. A move that is just being
    driven is compared when it stands still: its own coordinator does so before it switches."""
    present = ask_each(
        config.shards,
        lambda _, conn: slot in slots_present(conn),
        purpose="verify",
        deadline_seconds=STATUS_DEADLINE_SECONDS,
    )
    homes = tuple(name for name, here in present.given.items() if here)
    away = f"; not seen: {', '.join(present.failed)}" if present.failed else ""
    hanging = next((one.move for one in unfinished_moves(config) if one.move.slot == slot), None)
    if len(homes) > 1:
        return Verified(
            slot, False, f"slot {slot} is live on {' and '.join(homes)}: stop all writers, and ask for help", homes
        )
    if hanging is None:
        return _verify_settled(config, slot, homes, away)
    if hanging.state == "live":
        where = "is split" if hanging.splits else f"is live on {hanging.target}"
        return Verified(slot, not away, f"slot {slot} {where}; what it left is to be cleaned up{away}", homes)
    if not hanging.abandoned:
        verdict = f"slot {slot} is being {_doing(hanging)} by {hanging.runner}, which compares both sides itself"
        return Verified(slot, True, verdict, homes)
    if hanging.state == "planned":
        return Verified(slot, True, f"nothing of slot {slot} is copied yet", homes)
    compared = driver(config, hanging).compare()
    if compared is None:
        return Verified(slot, True, f"the copy of slot {slot} is not complete yet: resume it, or undo it", homes)
    checks = tuple(compared)
    well = all(check.same for check in checks)
    state = f"it is being {_doing(hanging)}, and that hangs ({hanging.state})"
    verdict = f"both sides of slot {slot} are the same" if well else f"the sides of slot {slot} differ"
    return Verified(slot, well, f"{verdict}; {state}", homes, checks)


def _doing(move: Move) -> str:
    return "split" if move.splits else f"moved to {move.target}"


def _verify_settled(config: ClusterConfig, slot: int, homes: tuple[str, ...], away: str) -> Verified:
    shard_map = load_map(config).shard_map
    check_slot(shard_map, slot)
    mapped = shard_map.shard_of_slot(slot)
    if slot in (elsewhere := astray(config, shard_map)):
        verdict = (
            f"slot {slot} is served by {mapped}, and Citus has moved its rows to {elsewhere[slot]}: it works, over a "
            f"hop; run: sharded-wf shards rebalance{away}"
        )
        return Verified(slot, False, verdict, homes)
    if homes == (mapped,):
        return Verified(slot, True, f"slot {slot} lives on {mapped}, and nowhere else{away}", homes)
    where = homes[0] if homes else "no shard that answers"
    return Verified(slot, False, f"the map says that slot {slot} lies on {mapped}, and it is on {where}{away}", homes)
