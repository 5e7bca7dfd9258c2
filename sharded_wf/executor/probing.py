"""What the testing kit asks of an executor in its own process: is it at rest, until when, and to crash on the spot.

Nothing of this runs in production.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharded_wf.clock import Microseconds
from sharded_wf.executor.ops import Op, OpKind, Told
from sharded_wf.store import slots

if TYPE_CHECKING:
    from sharded_wf.executor.executor import Executor
    from sharded_wf.executor.shard_executor import ShardExecutor


class Probe:
    """A look into one executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._parts: list[ShardExecutor] = executor.parts

    async def at_rest(self) -> bool:
        """Whether nothing goes on, here or in the rows that this executor serves, until time passes or somebody asks
        for something. ``next_due`` is then when time will make a difference."""
        if not self._memory_rests():
            return False
        before = self._what_was_done()
        due: list[Microseconds] = []
        for part in self._parts:
            glance = slots.glance_of(await part.shard.reader.fetch(slots.peek(part.moving.schemas)))
            if glance.wakes or glance.outgoing:
                return False
            if any(part.intake.serves(lane) for lanes in glance.lanes.values() for lane in lanes):
                return False
            due += glance.due.values()
        if not self._memory_rests() or self._what_was_done() != before:
            return False  # something happened while we looked: what one shard said may be of before, another's of after
        for part in self._parts:
            for hold in part.held.values():
                waiting = hold.run.waiting()
                if waiting is not None and waiting.deadline_us is not None:
                    due.append(waiting.deadline_us)
        self.next_due = min(due, default=None)
        return True

    next_due: Microseconds | None = None
    """The earliest moment at which a workflow that waits goes on; None: only somebody else can make it go on."""

    def _memory_rests(self) -> bool:
        return self._executor.courier.is_quiet and all(map(_is_quiet, self._parts))

    def _what_was_done(self) -> list[tuple[bytes | None, int, frozenset[int]]]:
        """Changes with every lease, flush and claim."""
        return [(part._lease_id, part.flusher.number, frozenset(map(id, part.held.values()))) for part in self._parts]

    def time_jumped(self) -> None:
        """The clock has been set forward: see what is due."""
        for part in self._parts:
            for hold in list(part.held.values()):
                if not hold.leaving and hasattr(hold, "run"):
                    hold.run.time_jumped()
            part.watch.look()

    def crash(self) -> None:
        """Lose everything that is not committed, as a killed process would. The executor then begins anew, and goes on
        from the rows."""
        for part in self._parts:
            part.runs.drop_everything()
            part._lost.set()

    @contextmanager
    def crashing_when_recorded(self, step: str, crashed: Callable[[], None]) -> Generator[None]:
        """Within the ``with`` block: crash once, when a result of this step is durable and before its workflow gets
        it."""
        before = [(part, part.flusher.saved) for part in self._parts]

        def unwatch() -> None:
            for part, saved in before:
                part.flusher.saved = saved

        def watching(saved: Callable[[list[Op], Told], None]) -> Callable[[list[Op], Told], None]:
            def watch(ops: list[Op], told: Told) -> None:
                if any(op.kind is OpKind.RECORD and op.entry and op.entry.name == step for op in ops):
                    unwatch()
                    self.crash()
                    crashed()
                else:
                    saved(ops, told)

            return watch

        for part, saved in before:
            part.flusher.saved = watching(saved)
        try:
            yield
        finally:
            unwatch()


def _is_quiet(part: ShardExecutor) -> bool:
    """Whether every workflow that is held only waits, and nothing is under way to or from the shard."""
    if part._lease_id is None or part._lost.is_set() or part.intake.is_busy:
        return False
    if not (part.flusher.is_quiet and part.lookups.is_quiet):
        return False
    return all(
        not hold.leaving and hasattr(hold, "run") and hold.run.waiting() is not None for hold in part.held.values()
    )
