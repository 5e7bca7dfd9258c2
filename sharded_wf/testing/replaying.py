"""Stored histories against today's code: would open workflows go on? No step runs, and no database is needed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context as VariableContext
from pathlib import Path
from types import TracebackType
from typing import Any

from sharded_wf.clock import Clock, Microseconds
from sharded_wf.errors import NonDeterminismError, ReplayFailed
from sharded_wf.limits import REPLAY_DEADLINE_SECONDS, REPLAY_FAILURES_SHOWN
from sharded_wf.model.history import Entry, FailedAttempt, Heartbeat
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Event, Message, Outcome, Start
from sharded_wf.serialization.exceptions import decode_error
from sharded_wf.serialization.histories import StoredHistory, read_histories
from sharded_wf.workflow.app import App
from sharded_wf.workflow.attempts import Attempts
from sharded_wf.workflow.host import Cancellable, Run
from sharded_wf.workflow.replay import Replay
from sharded_wf.workflow.stage import Stage
from sharded_wf.workflow.thread_run import ThreadRun
from sharded_wf.workflow.transactions import TransactionCommand


def replay(app: App, histories: Iterable[StoredHistory] | Path | str) -> int:
    """Replay stored workflows (of a file that ``sharded-wf workflow export`` wrote, or given) with the code of ``app``.

    A history passes if the code asks for everything that is recorded in it; of a workflow that had succeeded, if the
    code then ends, too. How many were replayed. Raises :class:`ReplayFailed` with all that do not pass, ``OSError`` or
    ``StoredValueMismatch`` if the file can't be read. May be called from anywhere: it runs in a thread of its own.
    """
    stored = list(read_histories(histories) if isinstance(histories, (str, Path)) else histories)
    failures: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            failures.extend(asyncio.run(_replay_all(app, stored)))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name="sharded_wf replay")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    if failures:
        shown = "\n".join(f"  {line}" for line in failures[:REPLAY_FAILURES_SHOWN])
        more = len(failures) - REPLAY_FAILURES_SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        raise ReplayFailed(f"{len(failures)} of {len(stored)} histories do not replay:\n{shown}{rest}")
    return len(stored)


async def _replay_all(app: App, stored: list[StoredHistory]) -> list[str]:
    failures: list[str] = []
    with ThreadPoolExecutor(1, thread_name_prefix="sharded_wf replay") as threads:
        for one in stored:
            reason = await _replay_one(app, one, threads)
            if reason is not None:
                failures.append(f"{one.id} ({one.name}): {reason}")
    return failures


async def _replay_one(app: App, stored: StoredHistory, threads: Executor) -> str | None:
    """Why it does not pass, or None."""
    definition = app.find_workflow(stored.name)
    if definition is None:
        return f"the app has no workflow {stored.name!r}"
    host = _ReplayHost(threads, stored)
    started_at = stored.created_at if stored.started_at is None else stored.started_at
    run = definition.new_run(host, stored.id, stored.input, stored.history, started_at, 1)
    if isinstance(run, ThreadRun):
        run.replay = _NothingRuns(stored.history)  # pyright: ignore[reportAttributeAccessIssue]
    ended = asyncio.Event()
    asyncio.get_running_loop().call_soon(_begin, run, ended)  # runs are stepped from plain callbacks
    await ended.wait()
    deadline = time.monotonic() + REPLAY_DEADLINE_SECONDS
    while isinstance(run, ThreadRun) and not host.left and not run.is_idle():
        if time.monotonic() > deadline:
            return f"the code did nothing that is recorded for {REPLAY_DEADLINE_SECONDS:g} s; does it block?"
        await asyncio.sleep(0.001)
    asked = _asked(run)
    asyncio.get_running_loop().call_soon(run.drop)
    await asyncio.sleep(0)
    return host.judge(asked)


def _begin(run: Run, ended: asyncio.Event) -> None:
    try:
        run.start()
    finally:
        ended.set()


def _asked(run: Any) -> str:
    """What the code asks for beyond its history."""
    return ", ".join(command.describe() for command in list(run.replay.commands.values())[:3]) if run.replay else ""


class _NothingRuns(Replay):
    """The requests of a ``def`` workflow of which no step runs: each seems to wait for another attempt."""

    __slots__ = ()

    def __init__(self, history: Any) -> None:
        super().__init__(history)
        self.attempts = _EveryOneFailed(self.attempts or {})


class _EveryOneFailed(dict[int, FailedAttempt]):
    _NEVER: Microseconds = 1 << 60

    def get(self, place: int, default: Any = None) -> Any:
        return FailedAttempt(place, 1, b"null", 0, 0, self._NEVER)


class _Stage(Stage):
    """Where code runs, and nothing that it asks for begins."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.waiting.clear()
        super().__exit__(kind, error, traceback)


class _StoodStill:
    """The moment of the last entry."""

    def __init__(self, now_us: Microseconds) -> None:
        self._now_us = now_us

    def now_us(self) -> Microseconds:
        return self._now_us

    def monotonic(self) -> float:
        return time.monotonic()


class _ReplayHost:
    """A host that makes nothing durable and lets nothing begin."""

    def __init__(self, threads: Executor, stored: StoredHistory) -> None:
        self.loop = asyncio.get_running_loop()
        entries = stored.history.entries
        self.clock: Clock = _StoodStill(entries[-1].completed_at if entries else stored.created_at)
        self.stage: Stage = _Stage(self.loop)
        self.attempts = Attempts(self.loop)
        self.threads = threads
        self.state: object = None
        self.outcome: Outcome | None = None
        self.left = False
        self._stored = stored

    def judge(self, asked: str) -> str | None:
        """Why the history does not pass, or None."""
        if self.outcome is not None and self.outcome.status is Status.FAILED:
            error = decode_error(self.outcome.error or b"null")
            if isinstance(error, NonDeterminismError):
                return str(error)
        status = self._stored.status
        if status is Status.SUCCEEDED:
            if not self.left:
                return f"it had ended, but the code now asks for {asked or 'more'}"
            if self.outcome is not None and self.outcome.status is not status:
                return f"it had succeeded, but the code now ends with {decode_error(self.outcome.error or b'null')!r}"
        return None

    def record(self, run: Run, entry: Entry, consumed: Message | None = None, outbox: Message | None = None) -> None:
        """Nothing is recorded."""

    def record_attempt(self, run: Run, attempt: FailedAttempt) -> None:
        """Nothing is recorded."""

    def record_heartbeat(self, run: Run, beat: Heartbeat) -> None:
        """Nothing is recorded."""

    def set_event(self, run: Run, event: Event) -> None:
        """Nothing is set."""

    def look_for_event(self, run: Run, workflow_id: str, key: str) -> None:
        """Nothing is found."""

    def transact(self, run: Run, transaction: TransactionCommand, variables: VariableContext) -> Cancellable:
        """Nothing begins."""
        return self.loop.create_future()

    def start_child(self, run: Run, start: Start) -> None:
        """Nothing is started."""

    def revive_child(self, run: Run, child_id: str, closers: tuple[str, ...]) -> None:
        """Nobody is resumed."""

    def send(self, run: Run, place: int, message: Message) -> None:
        """Nothing is sent."""

    def expect_messages(self, run: Run) -> None:
        """Nothing arrives."""

    def finish(self, run: Run, outcome: Outcome) -> None:
        self.outcome = outcome
        self.left = True

    def continue_as_new(
        self, run: Run, entry: Entry, capability: str, queue: str, cancels: tuple[str, ...] = ()
    ) -> None:
        self.left = True
