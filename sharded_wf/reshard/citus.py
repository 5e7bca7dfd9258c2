"""Moving a slot of a Citus cluster: Citus moves the rows, and then another node serves them.

Both are done while the slot is in use, and in this order. While the rows are on their way, and for a moment after, the
node that served the slot goes on serving it, over a hop; nobody notices but by the time it takes. Then executors give
the slot back, as with any move, and it is *handed over*: one transaction on the node that served it waits for all that
is under way there under a lease, and says in that node's copy of the map that another one serves the slot. From then on
every transaction there that touches the slot fails as if its tables were gone, since it ends with a question to that
copy (``guard``). Then one transaction on the other node gives back what is still claimed, and says that this node
serves the slot. Neither writes to two nodes: a commit that reached only one of them would be worse than either.

The rows need no other copy, no comparison and no clean-up of ours. The states are those of any move. A slot that Citus
moved by itself is handed over in the same way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import cast

import psycopg

from sharded_wf.cluster.citus import COORDINATOR, coordinator, move_rows, places, plan_rebalance
from sharded_wf.cluster.fanout import ask_each
from sharded_wf.cluster.shard_map import Placement, write_placements
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import MoveBlocked, MoveRefused
from sharded_wf.limits import (
    MOVE_BEAT_SECONDS,
    MOVE_DRAIN_SECONDS,
    MOVE_IDLE_SECONDS,
    MOVE_LOCK_ATTEMPTS,
    MOVE_LOCK_PAUSE_SECONDS,
    MOVE_LOCK_TIMEOUT_SECONDS,
    STATUS_DEADLINE_SECONDS,
)
from sharded_wf.postgres.queries import load
from sharded_wf.reshard.cutover import milliseconds
from sharded_wf.reshard.move import Mover
from sharded_wf.reshard.pulse import pulse_of
from sharded_wf.reshard.record import Side
from sharded_wf.reshard.tables import SQL
from sharded_wf.reshard.verify import TableCheck
from sharded_wf.routing import ShardMap, slot_schema

_CITUS = load("citus")
_MAP = load("shard_map")
_ON_CITUS = load("on_citus")
_POLL_SECONDS = 0.02


def astray(config: ClusterConfig, shard_map: ShardMap) -> Mapping[int, str]:
    """The slots whose rows lie on another node than the one that serves them, and on which: Citus has moved them. Empty
    if no node answers, and for a plain cluster."""
    if config.coordinator is None:
        return {}
    answers = ask_each(
        config.shards, lambda _, conn: places(conn), purpose="places", deadline_seconds=STATUS_DEADLINE_SECONDS
    )
    found = next(iter(answers.given.values()), dict[int, str]())
    return {slot: name for slot, name in sorted(found.items()) if shard_map.placement.get(slot, name) != name}


def rebalancing(config: ClusterConfig, shard_map: ShardMap) -> list[tuple[int, str]]:
    """What to move where: the slots that Citus has moved already are to be handed over, and those that its rebalancer
    would move are to be moved. Raises ``ShardUnavailable``."""
    moved = astray(config, shard_map)
    return [*moved.items(), *((slot, to) for slot, to in plan_rebalance(config).items() if slot not in moved)]


class CitusMover(Mover):
    """Drives one move between two nodes of a Citus cluster."""

    def undo(self) -> None:
        """Take the move back: Citus moves the rows back. Raises ``MoveRefused`` if another node serves the slot by
        now."""
        move = self._move
        with self._source() as source, self._target() as target:
            self._become_coordinator(source, target, undo=True)
            if source.hold() == "retired" or self._arrived(target):
                raise MoveRefused(f"slot {move.slot} is {move.target!r}'s already: use --resume, or move it back")
            source.advance("undoing", since=("planned", "copying", "draining", "undoing"))
            self._say("undoing")
            source.conn.execute(SQL["notify_moves"].on())
            self._have_moved(source, move.source)
            target.remove()
            source.remove()
        self._say("undone")

    def compare(self) -> list[TableCheck] | None:
        """There is one copy, which is Citus's own affair."""
        return []

    def _prepare(self, source: Side, target: Side) -> None:
        source.advance("copying", since=("planned", "copying", "draining"))
        self._say("copying")
        self._have_moved(source, self._move.target)
        self._end_departed(source, target)
        source.advance("draining", since=("copying",))
        source.conn.execute(SQL["notify_moves"].on())
        self._say("draining")
        give_up = time.monotonic() + MOVE_DRAIN_SECONDS
        while time.monotonic() < give_up:
            source.beat()
            row = source.conn.execute(SQL["count_claims"].on(self._move.names.slot)).fetchone()
            if row is None or row[0] == 0:
                break
            self._sleep(_POLL_SECONDS)

    def _have_moved(self, source: Side, shard: str) -> None:
        """Have Citus move the rows, and say meanwhile that we live. Raises ``MoveBlocked``."""
        slot = self._move.slot
        failures: list[Exception] = []

        def work() -> None:
            name, dsn = f"citus move {slot_schema(slot)}", cast(str, self._config.coordinator)
            with coordinator(self._config, name, None) as conn:
                # That of a process that began this before, and died: Citus does one thing with a slot at a time.
                conn.execute(SQL["end_coordinator"].on(), (f"sharded_wf {name}",))
                with pulse_of(dsn, conn, name) as pulse:
                    self._pulses.append((COORDINATOR, pulse))
                    move_rows(conn, slot, self._config.shard(shard))

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            source.beat()
            thread.join(MOVE_BEAT_SECONDS)
            self._check_pulses()
        if failures and isinstance(failures[0], psycopg.Error):
            reason = (failures[0].diag.message_primary or str(failures[0])).strip()
            raise MoveBlocked(
                f"Citus did not move slot {slot} to {shard!r}: {reason}. The slot works as before; when this is "
                "settled, run: sharded-wf shards move --resume, or --undo"
            )
        if failures:
            raise failures[0]

    def _cut_over(self) -> float | None:
        begun: float | None = None
        with self._source() as source, self._target() as target:
            if source.hold() != "retired":
                begun = self._hand_over(source)
                self._say("retired")
            self._take_up(target)
        return None if begun is None else time.monotonic() - begun

    def _hand_over(self, source: Side) -> float:
        """The source serves the slot no more. Returns the monotonic time when it stopped. Raises ``MoveBlocked``."""
        for _ in range(MOVE_LOCK_ATTEMPTS):
            try:
                return self._hand_over_once(source)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                source.beat()
                self._sleep(MOVE_LOCK_PAUSE_SECONDS)
        source.advance("copying", since=("draining",))  # executors may claim there again
        source.conn.execute(SQL["notify_moves"].on())
        raise MoveBlocked(
            f"transactions on {self._move.source!r} run for long (a step of @app.transaction, perhaps), and the slot "
            "can be handed over only between them. It works as before; run: sharded-wf shards move --resume"
        )

    def _hand_over_once(self, source: Side) -> float:
        conn, move, schema = source.conn, self._move, self._move.names.slot
        timeouts = milliseconds(MOVE_LOCK_TIMEOUT_SECONDS), milliseconds(MOVE_IDLE_SECONDS)
        with conn.transaction():
            source.hold()
            conn.execute(SQL["set_local_timeouts"].on(), timeouts)
            begun = time.monotonic()
            conn.execute(_CITUS["lock_leases"].on())
            leases = [lease for (lease,) in conn.execute(_CITUS["claiming_leases"].on(schema)).fetchall()]
            conn.execute(_CITUS["note_departures"].on(), (move.slot, leases))
            (fence,) = conn.execute(_MAP["read_fence"].on(schema)).fetchall()
            if cast(int, fence[2]) >= move.epoch:
                raise MoveRefused(
                    f"slot {move.slot} has moved since this move was planned; run: sharded-wf shards move --undo"
                )
            write_placements(conn, [Placement(move.slot, move.target, move.epoch)])
            source.advance("retired", since=("copying", "draining"))
        return begun

    def _take_up(self, target: Side) -> None:
        """The target serves the slot, whose rows nobody can write to since ``_hand_over``: what was still claimed is
        given back."""
        conn, move, schema = target.conn, self._move, self._move.names.slot
        with conn.transaction():
            target.hold()
            # Whoever held workflows here when the slot left the last time, and has not noticed since, is fenced.
            conn.execute(SQL["end_departed"].on(), (move.slot,))
            conn.execute(SQL["forget_departures"].on(), (move.slot,))
            conn.execute(_ON_CITUS["give_back_all__1"].on(schema))
            conn.execute(_ON_CITUS["give_back_all"].on(schema))
            conn.execute(_CITUS["pass_fence"].on(schema), (move.target, move.epoch))
            write_placements(conn, [Placement(move.slot, move.target, move.epoch)])
            target.advance("live", since=("copying",))
            conn.execute(SQL["notify_moves"].on())

    def _clean_source(self) -> bool:
        with self._source() as source:
            source.remove()
        return True
