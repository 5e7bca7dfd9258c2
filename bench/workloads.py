"""What is run: one app, and how a client makes units of work of it.

Every workflow returns ``{"ok": true}`` if all that it saw was as it must be; the certificate looks at that too. One
unit of steps in ``NOTED_EVERY`` uses ``noted`` steps, whose bodies write into the ledger that they ran: enough to catch
a body that runs again, too few to be felt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from sharded_wf import App, Bound, current, receive, send
from sharded_wf.errors import ConfigError

LEDGER_VARIABLE = "SHARDED_WF_BENCH_LEDGER"
NOTED_EVERY = 64
NOTES_WRITTEN_EVERY_SECONDS = 0.25
FAN_OUT_CHILDREN = 100
ROUND_TRIPS = 10  # of one pair of workflows
TIMER_FIRST_SECONDS = 0.1
TIMER_STEP_SECONDS = 0.1
TIMER_KINDS = 30  # 0.1 s to 3.0 s: some wait in memory, some are parked
BACKLOG_WORKFLOWS = 30_000  # as the bare loop's
TEXT = "hello world"
OK = {"ok": True}

app = App("bench")
Note = tuple[str, int, str, float]


class Notebook:
    """What bodies of steps say of themselves; written to the ledger in batches, on a connection of its own."""

    def __init__(self) -> None:
        self._notes: list[Note] = []

    def write(self, workflow_id: str, number: int) -> str:
        token = uuid.uuid4().hex
        self._notes.append((workflow_id, number, token, time.time()))
        return token

    async def flush(self, conn: psycopg.AsyncConnection[Any]) -> None:
        notes, self._notes = self._notes, []
        if notes:
            columns = [list(column) for column in zip(*notes, strict=True)]
            await conn.execute(
                "insert into body (workflow_id, number, token, at, pid) select i, n, t, to_timestamp(a), %s "
                "from unnest(%s::text[], %s::int[], %s::text[], %s::float8[]) u(i, n, t, a)",
                (os.getpid(), *columns),
            )

    async def flush_until(self, stopping: asyncio.Event, conn: psycopg.AsyncConnection[Any]) -> None:
        # Never cancelled: a batch whose INSERT is cancelled is neither here nor surely there.
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), NOTES_WRITTEN_EVERY_SECONDS)
            await self.flush(conn)
        await self.flush(conn)  # what was noted during the last one


@app.lifespan
async def keep_notebook(app: App) -> AsyncGenerator[Notebook]:
    notebook = Notebook()
    dsn = os.environ.get(LEDGER_VARIABLE)
    if dsn is None:
        yield notebook
        return
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        stopping = asyncio.Event()
        writing = asyncio.create_task(notebook.flush_until(stopping, conn))
        try:
            yield notebook
        finally:
            stopping.set()
            await writing


# --- steps and workflows --------------------------------------------------------------------------------------------


@app.step
async def add(number: int) -> dict[str, int]:
    return {"n": number}


@app.step
async def noted(number: int) -> str:
    here = current()
    assert isinstance(here.state, Notebook)
    return here.state.write(here.workflow_id, number)


@app.step
def add_in_thread(number: int) -> dict[str, int]:
    return {"n": number}


@app.step
async def repeat(text: str) -> str:
    return text


@app.workflow
async def steps(count: int, _text: str) -> dict[str, bool]:
    for number in range(count):
        await add(number)
    return OK


@app.workflow
async def noted_steps(count: int) -> dict[str, bool]:
    for number in range(count):
        await noted(number)
    return OK


@app.workflow
async def sync_steps(count: int) -> dict[str, bool]:
    for number in range(count):
        await add_in_thread.in_thread(number)
    return OK


@app.workflow
def sync_workflow(count: int) -> dict[str, bool]:
    for number in range(count):
        add_in_thread(number)
    return OK


@app.workflow
async def fan_out(children: int) -> dict[str, bool]:
    answers = await asyncio.gather(*(steps(0, TEXT) for _ in range(children)))
    return {"ok": len(answers) == children and all(answer == OK for answer in answers)}


@app.workflow
async def ping(partner: str, count: int) -> dict[str, bool]:
    in_order = True
    for number in range(count):
        await send(partner, "ping", number)
        in_order &= await receive("pong", int) == number
    return {"ok": in_order}


@app.workflow
async def pong(partner: str, count: int) -> dict[str, bool]:
    in_order = True
    for number in range(count):
        in_order &= await receive("ping", int) == number
        await send(partner, "pong", number)
    return {"ok": in_order}


@app.workflow
async def sleep(seconds: float) -> dict[str, bool]:
    await asyncio.sleep(seconds)
    return OK


@app.workflow
async def carry(text: str) -> dict[str, bool]:
    return {"ok": await repeat(text) == text}


# --- units of work --------------------------------------------------------------------------------------------------

Item = Bound[Any] | tuple[str, Bound[Any]]
PairMaker = Callable[[], tuple[str, str]]
"""Makes two IDs that live on different shards (of one shard: on that)."""


@dataclass(frozen=True)
class Workload:
    """``unit(number, pair)``: what a client starts as one unit of work. ``workflows`` and ``steps``: how many of them
    come of one unit, children included. ``ceiling_steps``: the steps of the bare loop's workflow that owes the same
    durable writes; None: the bare loop has no like. ``backlog``: how many workflows the closed loop may be
    ahead. ``round_trips``: messages that go there and back."""

    name: str
    about: str
    unit: Callable[[int, PairMaker], Iterable[Item]]
    workflows: int = 1
    steps: int = 0
    ceiling_steps: int | None = None
    backlog: int = BACKLOG_WORKFLOWS
    round_trips: int = 0
    earlier: frozenset[str] = frozenset()
    """Names of workflows that are sent messages by others of the unit: they are started before those."""
    steps_of: tuple[tuple[str, int], ...] = ()
    """The recorded steps that a finished workflow of each name has."""

    def units(self, first: int, count: int, pair: PairMaker) -> Iterator[Item]:
        for number in range(first, first + count):
            yield from self.unit(number, pair)


def _noop(_number: int, _pair: PairMaker) -> Iterable[Item]:
    return (steps.bind(0, TEXT),)


def _timer(number: int, _pair: PairMaker) -> Iterable[Item]:
    return (sleep.bind(TIMER_FIRST_SECONDS + TIMER_STEP_SECONDS * (number % TIMER_KINDS)),)


def _messages(_number: int, pair: PairMaker) -> Iterable[Item]:
    one, other = pair()
    return ((one, ping.bind(other, ROUND_TRIPS)), (other, pong.bind(one, ROUND_TRIPS)))


def _fan_out(_number: int, _pair: PairMaker) -> Iterable[Item]:
    return (fan_out.bind(FAN_OUT_CHILDREN),)


def _steps(count: int) -> Callable[[int, PairMaker], Iterable[Item]]:
    def unit(number: int, _pair: PairMaker) -> Iterable[Item]:
        return (noted_steps.bind(count) if number % NOTED_EVERY == 0 else steps.bind(count, TEXT),)

    return unit


def _payload(text: str) -> Callable[[int, PairMaker], Iterable[Item]]:
    return lambda _number, _pair: (carry.bind(text),)


def _mixed(number: int, pair: PairMaker) -> Iterable[Item]:
    yield from (steps.bind(0, TEXT) for _ in range(8))
    yield from (steps.bind(3, TEXT) for _ in range(5))
    yield noted_steps.bind(3)
    yield from (sync_steps.bind(1) for _ in range(2))
    yield from (item for kind in range(2) for item in _timer(2 * number + kind, pair))
    yield from _messages(number, pair)
    yield fan_out.bind(10)


_CARRIES = (("bench/carry", 1),)

_FIXED = {
    made.name: made
    for made in (
        Workload("noop", "a workflow without steps", _noop, ceiling_steps=0, steps_of=(("bench/steps", 0),)),
        Workload(
            "fan-out",
            f"a parent with {FAN_OUT_CHILDREN} children over all shards",
            _fan_out,
            workflows=FAN_OUT_CHILDREN + 1,
            ceiling_steps=0,
        ),
        Workload(
            "messages",
            f"two workflows on different shards, {ROUND_TRIPS} messages there and back",
            _messages,
            workflows=2,
            backlog=2_000,
            earlier=frozenset({pong.name}),
            round_trips=ROUND_TRIPS,
        ),
        Workload("timers", "a workflow that sleeps 0.1 to 3 s", _timer),
        Workload("payloads-1k", "1 kB in, 1 kB recorded", _payload("x" * 1_000), steps=1, steps_of=_CARRIES),
        Workload(
            "payloads-100k",
            "100 kB in, 100 kB recorded",
            _payload("x" * 100_000),
            steps=1,
            steps_of=_CARRIES,
            backlog=500,
        ),
        Workload(
            "mixed",
            "a bit of everything, 31 workflows a unit",
            _mixed,
            workflows=31,
            steps=20,
            earlier=frozenset({pong.name}),
        ),
    )
}
NAMES = (*_FIXED, "steps", "sync-steps", "sync-workflow")


def find(name: str, count: int) -> Workload:
    """The workload of this name, its workflows having ``count`` steps if they have any. ``ConfigError`` names all."""
    if name in ("sync-steps", "sync-workflow"):
        workflow = sync_steps if name == "sync-steps" else sync_workflow
        return Workload(
            name,
            f"{'an async' if name == 'sync-steps' else 'a def'} workflow with {count} def steps, in threads",
            lambda _number, _pair: (workflow.bind(count),),
            steps=count,
            ceiling_steps=count,
            steps_of=((workflow.name, count),),
        )
    if name == "steps":
        named = (("bench/steps", count), ("bench/noted_steps", count))
        about = f"a workflow with {count} steps"
        return Workload(name, about, _steps(count), steps=count, ceiling_steps=count, steps_of=named)
    if name not in _FIXED:
        raise ConfigError(f"there is no workload {name!r}; there are {', '.join(NAMES)}")
    return _FIXED[name]
