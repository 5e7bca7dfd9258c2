"""An app on a cluster, for one test: a client, an executor, and a clock that both go by."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from sharded_wf.client import Client, Handle
from sharded_wf.clock import SECOND_US, Microseconds, seconds_of
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import WorkflowStuck
from sharded_wf.executor import Executor
from sharded_wf.executor.probing import Probe
from sharded_wf.limits import TESTING_LOOK_SECONDS
from sharded_wf.testing.clock import SkippingClock
from sharded_wf.testing.mocks import crash_within
from sharded_wf.workflow.app import App
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.definitions import AsyncStep, SyncStep

T = TypeVar("T")
CrashMoment = Literal["before", "after", "recorded"]


class WorkflowEnvironment:
    """Runs ``app`` on ``cluster``: ``async with WorkflowEnvironment(app, workflow_cluster) as env``.

    ``start``: the moment that the clock shows at first (None: now; it must be aware of its time zone). ``options``: of
    ``Executor``. While ``run``, ``result``, ``skip`` or ``settle`` wait, time that nothing but sleeping workflows would
    spend is skipped; else the clock runs as ever.
    """

    def __init__(self, app: App, cluster: ClusterConfig, *, start: datetime | None = None, **options: Any) -> None:
        self.app = app
        self.cluster = cluster
        self.clock = SkippingClock(None if start is None else _microseconds(start))
        self._options: dict[str, Any] = {"drain_seconds": 0.0, **options}
        self._exits = contextlib.AsyncExitStack()
        self.client: Client
        """Connected to the cluster, by the environment's clock."""
        self.executor: Executor

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            self.client = await exits.enter_async_context(Client.connect(self.cluster, self.clock))
            executor = Executor(self.app, self.cluster, clock=self.clock, **self._options)
            self.executor = await exits.enter_async_context(executor)
            self._probe = Probe(self.executor)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    @property
    def now(self) -> datetime:
        """What the clock shows, in UTC."""
        return datetime.fromtimestamp(self.clock.now_us() / SECOND_US, UTC)

    async def start(self, bound: Bound[T], **options: Any) -> Handle[T]:
        """As ``client.start``."""
        return await self.client.start(bound, **options)

    async def run(self, bound: Bound[T], **options: Any) -> T:
        """Start a workflow and give its result, without waiting for its sleeps. ``options`` and errors as
        ``client.start`` and :meth:`result`."""
        return await self.result(await self.client.start(bound, **options))

    async def result(self, handle: Handle[T]) -> T:
        """The workflow's result, without waiting for its sleeps. Raises what ``handle.result`` raises, and
        :class:`WorkflowStuck` if it waits for a message that nobody sends."""
        while True:
            due = await self.settle()
            if (await handle.status()).is_final:
                return await handle.result()
            if due is None:
                raise WorkflowStuck(
                    f"workflow {handle.id!r} waits for a message or another workflow, and nothing else goes on: send "
                    "it what it waits for, then ask for the result"
                )
            self._jump(_microseconds(due))

    async def skip(self, duration: timedelta | float) -> None:
        """Let so much time pass (``timedelta`` or seconds): everything that comes due within it happens in its
        order, each at its moment."""
        target = self.clock.now_us() + round(seconds_of(duration) * SECOND_US)
        while (due := await self.settle()) is not None and _microseconds(due) <= target:
            self._jump(_microseconds(due))
        self._jump(target)
        await self.settle()

    async def settle(self) -> datetime | None:
        """Wait until all workflows that can go on have gone on; the moment at which the next will, or None if only a
        message, or a new workflow, can make a difference."""
        while not await self._probe.at_rest():  # noqa: ASYNC110 - an executor tells nobody that it rests
            await asyncio.sleep(TESTING_LOOK_SECONDS)
        due = self._probe.next_due
        return (
            None
            if due is None
            else datetime.fromtimestamp(due // SECOND_US, UTC) + timedelta(microseconds=due % SECOND_US)
        )

    def _jump(self, moment: Microseconds) -> None:
        self.clock.advance_to(moment)
        self._probe.time_jumped()

    def crash(self) -> None:
        """Crash now: the executor forgets everything that is not committed, and begins anew from the rows."""
        self._probe.crash()

    def crash_at(
        self, step: AsyncStep[Any, Any] | SyncStep[Any, Any], when: CrashMoment = "after"
    ) -> contextlib.AbstractContextManager[asyncio.Event]:
        """Crash once at this step, within the ``with`` block: ``"before"`` its body runs, ``"after"`` it has run (its
        result is lost: it will run again), or when the result is ``"recorded"`` (it must not run again). Gives an event
        that is set when it has crashed."""
        return self._crash_at(step, when)

    @contextlib.contextmanager
    def _crash_at(self, step: AsyncStep[Any, Any] | SyncStep[Any, Any], when: CrashMoment) -> Any:
        crashed = asyncio.Event()
        if when == "recorded":
            with self._probe.crashing_when_recorded(step.name, crashed.set):
                yield crashed
            return

        def crash() -> None:
            self._probe.crash()
            crashed.set()

        with crash_within(step, crash, after=when == "after"):
            yield crashed


def _microseconds(moment: datetime) -> Microseconds:
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} names no time zone; write for example datetime(2026, 3, 1, tzinfo=UTC)")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
