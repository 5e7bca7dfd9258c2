"""Where slots are: by the copies of the map, by the slots' own word, and in the middle of moves."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sharded_wf.cluster.citus import places
from sharded_wf.cluster.shard_map import PLANNED_EPOCH
from sharded_wf.doctor.checks import ClusterCheck, Family, Fleet, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, some
from sharded_wf.doctor.look import Look
from sharded_wf.reshard.record import Move

_MOVE_SCHEMA = re.compile(r"wf_(\d+)_(?:incoming|changes|retired)_(\d+)")


def _moving(fleet: Fleet) -> dict[int, Move]:
    """Unfinished moves by slot, as the more advanced side says."""
    found: dict[int, Move] = {}
    for facts in fleet.facts.values():
        for move in facts.moves:
            known = found.get(move.slot)
            # Until the slot is live on the target, its source knows best.
            best = facts.shard == (move.target if move.state == "live" else move.source)
            if known is None or move.epoch > known.epoch or (best and known.state != "live"):
                found[move.slot] = move
    return found


def map_copies(fleet: Fleet) -> Iterator[Finding]:
    """Shards that disagree about the map."""
    newest, moving = fleet.newest, _moving(fleet)
    if newest and all(row.epoch == PLANNED_EPOCH for row in newest.values()):
        yield Finding(
            Severity.CRITICAL,
            "the making of this cluster was interrupted",
            "Nothing can be started until it is finished.",
            (fleet.cli("shards", "init"),),
        )
    for name, facts in fleet.facts.items():
        mine = {row.slot: row for row in facts.record.placements}
        against = [
            f"slot {slot} lies on {mine[slot].shard}, elsewhere on {row.shard} (epoch {row.epoch})"
            for slot, row in newest.items()
            if slot in mine and mine[slot].epoch == row.epoch and mine[slot].shard != row.shard
        ]
        if against:
            yield Finding(
                Severity.CRITICAL,
                f"its copy of the map contradicts the others': {some(against)}",
                "Every process refuses to start on such a cluster. One of the databases was restored from a backup, or "
                "changed by hand: find out which slots really live where before anything else.",
                tuple(fleet.cli("shards", "verify", str(slot)) for slot in sorted(newest) if slot in mine
                      and mine[slot].epoch == newest[slot].epoch and mine[slot].shard != newest[slot].shard)[:3],
                name,
            )  # fmt: skip
        old = sorted(
            slot for slot, row in newest.items()
            if slot not in moving and (slot not in mine or mine[slot].epoch < row.epoch)
        )  # fmt: skip
        if old:
            yield Finding(
                Severity.WARNING,
                f"its copy of the map is old for {len(old)} slots: {some([str(slot) for slot in old])}",
                "It was away when they moved. Harmless while another shard answers, since the newest copy wins; a "
                "process that reaches only this one looks for workflows where they are not.",
                (fleet.cli("shards", "init"),),
                name,
            )


def slot_homes(fleet: Fleet) -> Iterator[Finding]:
    """Slots that live on no shard, on two, or elsewhere than the map says."""
    homes: dict[int, list[str]] = {}
    for name, facts in fleet.facts.items():
        for slot in facts.live_slots:
            homes.setdefault(slot, []).append(name)
    moving, newest, placement = _moving(fleet), fleet.newest, fleet.placement
    for slot, names in sorted(homes.items()):
        if len(names) > 1:
            yield Finding(
                Severity.CRITICAL,
                f"slot {slot} is live on {' and '.join(names)}",
                "Its workflows may run twice and end twice. Stop every worker and client of this cluster, then find "
                "out which side is the right one (a database that was restored from a backup is the wrong one).",
                (fleet.cli("shards", "verify", str(slot)),),
            )
    everybody_asked = fleet.whole and not fleet.silent
    lost = [slot for slot, shard in sorted(placement.items())
            if slot not in homes and slot not in moving and (everybody_asked or shard in fleet.facts)]  # fmt: skip
    for name in sorted({placement[slot] for slot in lost}):
        slots = [str(slot) for slot in lost if placement[slot] == name]
        yield Finding(
            Severity.CRITICAL,
            f"{len(slots)} slots are not there, and the map says they are: {some(slots)}",
            "Their workflows are gone from here: the DSN leads to another database, a schema was dropped, or a backup "
            "of before they came was restored. Nothing makes them anew by itself, since that would hide the loss.",
            tuple(fleet.cli("shards", "verify", slot) for slot in slots[:3]),
            name,
        )
    for name, facts in fleet.facts.items():
        for slot in facts.live_slots:
            if slot not in moving and slot in newest and placement.get(slot) != name and homes[slot] == [name]:
                where = f"on {placement[slot]}" if slot in placement else "that it was split"
                yield Finding(
                    Severity.CRITICAL,
                    f"slot {slot} lives here, and the newest map says {where}",
                    "Nobody finds its workflows. Every copy of the map that knew of its last move is away, or was "
                    "restored from a backup.",
                    (fleet.cli("shards", "verify", str(slot)),),
                    name,
                )


def missing_shards(fleet: Fleet) -> Iterator[Finding]:
    """Shards of the map that the configuration does not name."""
    named = {shard.name for shard in fleet.config.shards}
    for name in sorted(set(fleet.placement.values()) - named):
        yield Finding(
            Severity.CRITICAL,
            f"the map names the shard {name!r}, and {fleet.config.source} does not",
            "A process that starts with this file is refused. Other processes know it: the file is an old one.",
            (f'printf \'[[shard]]\\nname = "{name}"\\ndsn = "…"\\n\' >> {fleet.config.source}',),
        )


def unfinished_moves(fleet: Fleet) -> Iterator[Finding]:
    """Moves that nobody drives any more."""
    for slot, move in sorted(_moving(fleet).items()):
        if not move.abandoned:
            continue
        nowhere = move.state == "retired"
        action = "--undo" if move.state == "undoing" else "--resume"
        what = f"move of slot {slot} from {move.source} to {move.target}"
        if move.splits:
            what = f"split of slot {slot} on {move.source}"
        yield Finding(
            Severity.CRITICAL if nowhere else Severity.WARNING,
            f"the {what} hangs ({move.state}); last driven by {move.runner}",
            "The slot lives nowhere: its workflows wait, and so do starts."
            if nowhere
            else "The slot works, and pays for the notes of its changes; or old rows lie where it came from.",
            (fleet.cli("shards", "split" if move.splits else "move", action, str(slot), "--yes"),),
        )


def leftovers(look: Look) -> Iterator[Finding]:
    """Schemas and triggers of moves that are no more."""
    known = {(move.slot, move.epoch) for move in look.facts.moves}
    left: list[str] = []
    for (schema,) in look.rows("read_leftovers"):
        found = _MOVE_SCHEMA.fullmatch(schema)
        if found and (int(found[1]), int(found[2])) not in known:
            left.append(schema)
    if left:
        yield Finding(
            Severity.WARNING,
            f"left behind by moves that nobody knows of any more: {some(left)}",
            "Old rows of a slot take up room. Compare first, if you don't know how they came to be: a schema named "
            "retired holds what lived here before.",
            (look.psql(*(f"drop schema {schema} cascade" for schema in left)),),
        )
    moving = {move.slot for move in look.facts.moves}
    for (schema,) in look.rows("read_capturing"):
        if int(schema.removeprefix("wf_")) not in moving:
            yield Finding(
                Severity.WARNING,
                f"the tables of {schema} note their changes for a move that is no more",
                "Every write to the slot pays for it, and the notes grow without bound; if their schema is dropped, "
                "writes fail.",
                (look.psql(*(f"drop trigger if exists move_{event} on {schema}.{table}"
                             for table in _slot_tables(look, schema) for event in ("insert", "update", "delete"))),),
            )  # fmt: skip


def rows_elsewhere(look: Look) -> Iterator[Finding]:
    """Slots of a Citus cluster that are served here, and whose rows are not."""
    if look.config.coordinator is None:
        return
    found = places(look.conn)
    here = sorted(look.facts.live_slots)
    if moved := [slot for slot in here if found.get(slot, look.shard.name) != look.shard.name]:
        yield Finding(
            Severity.WARNING,
            f"Citus has moved the rows of slots that are served here: {some([str(slot) for slot in moved])}",
            "Every statement goes to another node and back, and takes that node, too, to work: slower, not wrong.",
            (look.cli("shards", "rebalance", "--yes"),),
        )


def _slot_tables(look: Look, schema: str) -> list[str]:
    return sorted(row[1] for row in look.rows("read_tables", ([schema],)) if row[1] != "fence")


FAMILY = Family(
    "placement",
    "every slot lives once, all shards know where, no move hangs",
    (
        ClusterCheck("map-copies", map_copies),
        ClusterCheck("slot-homes", slot_homes),
        ClusterCheck("missing-shard", missing_shards),
        ClusterCheck("unfinished-move", unfinished_moves),
        ShardCheck("move-leftovers", leftovers),
        ShardCheck("rows-elsewhere", rows_elsewhere),
    ),
)
