"""Moves and splits over the whole cluster: what may begin, what hangs, and several at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from sharded_wf.cluster.directory import Directory, load_map
from sharded_wf.cluster.fanout import ask_each
from sharded_wf.cluster.shard_map import read_record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import MoveRefused
from sharded_wf.limits import MOVE_PACE_FACTOR, MOVES_AT_ONCE_MAX, SLOTS_MAX, STATUS_DEADLINE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import unknown_to_us
from sharded_wf.reshard.citus import CitusMover
from sharded_wf.reshard.coordinator import Coordinator, Moved, Progress
from sharded_wf.reshard.move import Mover
from sharded_wf.reshard.record import Move, read_moves
from sharded_wf.reshard.split import Splitter
from sharded_wf.reshard.tables import SQL
from sharded_wf.routing import ShardMap, children_of, slot_schema, width_of


@dataclass(frozen=True, slots=True)
class Wish:
    """A slot that shall lie on another shard; one whose target is its source shall be split there."""

    slot: int
    source: str
    target: str


def driver(
    config: ClusterConfig,
    move: Move,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    pace: float = MOVE_PACE_FACTOR,
) -> Coordinator:
    """Whoever drives this: a move, or a split."""
    mover = Mover if config.coordinator is None else CitusMover
    return (Splitter if move.splits else mover)(config, move, report, pace=pace)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A move that is under way, or hangs. ``unseen``: shards of it that do not answer; what they know may be newer."""

    move: Move
    unseen: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether the slot lives on the target already, or is split, as far as can be seen."""
        return self.move.state == "live"


def unfinished_moves(config: ClusterConfig, patience_seconds: float | None = None) -> list[Unfinished]:
    """Every unfinished move that some shard knows of, as the more advanced of its sides says. ``patience_seconds``: as
    for ``ask_each``."""

    def ask(_shard: ShardConfig, conn: Connection) -> list[Move]:
        return read_moves(conn) if read_record(conn).identity is not None else []

    answers = ask_each(
        config.shards, ask, purpose="moves", deadline_seconds=STATUS_DEADLINE_SECONDS, patience_seconds=patience_seconds
    )
    known: dict[int, dict[str, Move]] = {}
    for shard, moves in answers.given.items():
        for move in moves:
            known.setdefault(move.slot, {})[shard] = move
    found: list[Unfinished] = []
    for slot in sorted(known):
        sides = known[slot]
        newest = max(sides.values(), key=lambda move: move.epoch)
        target, source = sides.get(newest.target), sides.get(newest.source)
        said = target if target is not None and target.state == "live" else source or target or newest
        unseen = tuple(name for name in dict.fromkeys((newest.source, newest.target)) if name in answers.failed)
        found.append(Unfinished(said, unseen))
    return found


def check_wishes(config: ClusterConfig, wishes: Iterable[tuple[int, str]]) -> list[Wish]:
    """What may be moved, with where it lies now. A slot that is on its target already is left out.

    Raises ``MoveRefused`` if a slot or shard does not exist, has an unfinished move, or is not ready for one; and what
    ``load_map`` raises."""
    directory = load_map(config)
    members = {shard.name for shard in directory.shards}
    moving = {unfinished.move.slot: unfinished.move for unfinished in unfinished_moves(config)}
    found: list[Wish] = []
    for slot, target in wishes:
        check_slot(directory.shard_map, slot)
        if target not in members:
            config.shard(target)
            raise MoveRefused(f"shard {target!r} is not part of the cluster yet; run: sharded-wf shards add {target}")
        _check_settled(moving, slot)
        source = directory.shard_map.shard_of_slot(slot)
        if source != target:
            found.append(Wish(slot, source, target))
    for name in sorted({name for wish in found for name in (wish.source, wish.target)}):
        _check_ready(config, directory, name)
    return found


def check_splits(config: ClusterConfig, slots: Iterable[int]) -> list[Wish]:
    """What may be split, with where it lies. Raises as ``check_wishes``; and ``MoveRefused`` if there would be more
    slots than there can be."""
    directory = load_map(config)
    shard_map = directory.shard_map
    moving = {unfinished.move.slot: unfinished.move for unfinished in unfinished_moves(config)}
    found: list[Wish] = []
    for slot in slots:
        check_slot(shard_map, slot)
        _check_settled(moving, slot)
        if width_of(slot, shard_map.base) * 2 > SLOTS_MAX:
            raise MoveRefused(
                f"slot {slot} can't be split any more: it holds a {width_of(slot, shard_map.base)}th of all workflows, "
                f"and less than a {SLOTS_MAX}th is no slot"
            )
        source = shard_map.shard_of_slot(slot)
        found.append(Wish(slot, source, source))
    for name in sorted({wish.source for wish in found}):
        _check_ready(config, directory, name)
    return found


def sizes(config: ClusterConfig, wishes: Sequence[Wish]) -> dict[int, int]:
    """How much room these slots take on the disks of their shards, in bytes. Raises ``ShardUnavailable``."""
    slots = {slot_schema(wish.slot): wish.slot for wish in wishes}

    def ask(_shard: ShardConfig, conn: Connection) -> list[tuple[str, int]]:
        return cast(list[tuple[str, int]], conn.execute(SQL["slot_sizes"].on(), (list(slots),)).fetchall())

    shards = [config.shard(name) for name in dict.fromkeys(wish.source for wish in wishes)]
    answers = ask_each(shards, ask, purpose="sizes", deadline_seconds=STATUS_DEADLINE_SECONDS).all_or_raise()
    return {slots[schema]: size for rows in answers.values() for schema, size in rows}


def check_slot(shard_map: ShardMap, slot: int) -> None:
    """Raises ``MoveRefused`` if there is no such slot."""
    if slot in shard_map.placement:
        return
    if 0 <= slot < max(shard_map.placement):
        halves = " and ".join(map(str, children_of(slot, shard_map.base)))
        raise MoveRefused(f"slot {slot} was split; what it held is in {halves}, or in what these were split into")
    raise MoveRefused(
        f"there is no slot {slot}; they are numbered {min(shard_map.placement)} to {max(shard_map.placement)}"
    )


def _check_settled(moving: Mapping[int, Move], slot: int) -> None:
    if slot not in moving:
        return
    what = "split" if moving[slot].splits else f"move to {moving[slot].target!r}"
    command = "split" if moving[slot].splits else "move"
    raise MoveRefused(
        f"slot {slot} has an unfinished {what} ({moving[slot].state}); "
        f"run: sharded-wf shards {command} --resume {slot}, or --undo {slot}"
    )


def _check_ready(config: ClusterConfig, directory: Directory, shard: str) -> None:
    if shard in directory.unreachable:
        raise MoveRefused(f"shard {shard!r} did not answer: {directory.unreachable[shard]}")
    # (What this version needs and a shard does not have, `load_map` has found.)
    answers = ask_each(
        [config.shard(shard)],
        lambda _, conn: unknown_to_us(conn),
        purpose="moves",
        deadline_seconds=STATUS_DEADLINE_SECONDS,
    ).all_or_raise()
    if newer := answers[shard]:
        raise MoveRefused(
            f"shard {shard!r} has a migration that this version does not know ({newer}); move slots with the newer "
            "sharded-wf"
        )


def new_move(config: ClusterConfig, wish: Wish) -> Move:
    """The move that fulfils the wish, at an epoch above every one that is known of."""
    epoch = load_map(config).shard_map.epoch + 1
    return Move(wish.slot, uuid.uuid4(), wish.source, wish.target, epoch, "planned")


def move_all(
    config: ClusterConfig,
    wishes: Sequence[Wish],
    report: Callable[[Progress], None] = lambda _: None,
    *,
    pace: float = MOVE_PACE_FACTOR,
) -> tuple[list[Moved], dict[int, Exception]]:
    """Carry out moves and splits: one at a time for each pair of shards (splits: for each shard), and some pairs at
    once. Returns what was moved, and what was not, and why, by slot. After a failure nothing new is begun between the
    same two shards."""

    def work(wish: Wish) -> Moved:
        return driver(config, new_move(config, wish), report, pace=pace).run()

    return _in_pairs([((wish.source, wish.target), wish.slot, partial(work, wish)) for wish in wishes])


def resume_all(
    config: ClusterConfig, moves: Sequence[Move], report: Callable[[Progress], None] = lambda _: None
) -> tuple[list[Moved], dict[int, Exception]]:
    """As ``move_all``, for unfinished moves. Those that were being undone are undone to the end."""

    def work(move: Move) -> Moved | None:
        mover = driver(config, move, report)
        if move.state != "undoing":
            return mover.run()
        mover.undo()
        return None

    return _in_pairs([((move.source, move.target), move.slot, partial(work, move)) for move in moves])


def undo_all(
    config: ClusterConfig, moves: Sequence[Move], report: Callable[[Progress], None] = lambda _: None
) -> tuple[list[Moved], dict[int, Exception]]:
    """Take moves back, as ``Mover.undo`` and ``Splitter.undo``. What failed, and why, by slot."""
    return _in_pairs([((move.source, move.target), move.slot, driver(config, move, report).undo) for move in moves])


_Task = tuple[tuple[str, str], int, Callable[[], Moved | None]]


def _in_pairs(tasks: Sequence[_Task]) -> tuple[list[Moved], dict[int, Exception]]:
    done: list[Moved] = []
    failed: dict[int, Exception] = {}
    queues: dict[frozenset[str], list[_Task]] = {}
    for task in tasks:
        queues.setdefault(frozenset(task[0]), []).append(task)
    waiting = list(queues.values())
    lock = threading.Lock()

    def drain_queues() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                queue = waiting.pop(0)
            for _, slot, work in queue:
                try:
                    moved = work()
                except Exception as error:  # noqa: BLE001 - kept, and judged by whoever asked
                    failed[slot] = error
                    break
                if moved is not None:
                    done.append(moved)

    threads = [threading.Thread(target=drain_queues, daemon=True) for _ in range(min(MOVES_AT_ONCE_MAX, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done, failed
