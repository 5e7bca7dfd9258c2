"""Workloads that differ from a plainer one in one thing, which tells what that thing costs. See ``attribution.py``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psycopg

from sharded_wf import Retry, current, heartbeat, receive, saga, send, set_attributes, set_event

from . import workloads
from .workloads import BACKLOG_WORKFLOWS, OK, TEXT, Item, PairMaker, Workload, add, add_in_thread, repeat, steps
from .workloads import app as app

USES = 4
"""So many times a workflow makes use of a feature, so that its price stands out."""
TEN_ATTEMPTS = Retry(attempts=10)


@app.step(retry=TEN_ATTEMPTS, timeout=30.0)
async def add_with_care(number: int) -> dict[str, int]:
    return {"n": number}


@app.step(heartbeat=30.0)
async def add_and_report(number: int) -> dict[str, int]:
    heartbeat(number)
    return {"n": number}


@app.transaction
async def add_in_transaction(conn: psycopg.AsyncConnection, number: int) -> dict[str, int]:
    return {"n": number}


@app.step
async def undo(_result: dict[str, int]) -> None:
    raise AssertionError("nothing is undone here")


@app.workflow
async def careful_steps(count: int) -> dict[str, bool]:
    for number in range(count):
        await add_with_care(number)
    return OK


@app.workflow
async def reporting_steps(count: int) -> dict[str, bool]:
    for number in range(count):
        await add_and_report(number)
    return OK


@app.workflow
async def gathered_steps(count: int) -> dict[str, bool]:
    await asyncio.gather(*(add(number) for number in range(count)))
    return OK


@app.workflow
async def carries(count: int, text: str) -> dict[str, bool]:
    for _ in range(count):
        await repeat(text)
    return OK


@app.workflow
async def transactions(count: int) -> dict[str, bool]:
    for number in range(count):
        await add_in_transaction(number)
    return OK


@app.workflow
async def saga_steps(count: int) -> dict[str, bool]:
    async with saga() as scope:
        for number in range(count):
            await scope.step(add(number), undo=undo)
    return OK


@app.workflow
async def attributes(count: int) -> dict[str, bool]:
    for number in range(count):
        await set_attributes(stage=number)
    return OK


@app.workflow
async def events(count: int) -> dict[str, bool]:
    for number in range(count):
        await set_event("stage", number)
    return OK


@app.workflow
async def side_inputs(count: int) -> dict[str, bool]:
    here = current()
    for _ in range(count):
        drawn = (here.now(), here.random().random(), here.uuid4())
        assert all(drawn)
    return OK


@app.workflow
async def timers(count: int) -> dict[str, bool]:
    for _ in range(count):
        await asyncio.sleep(0.001)
    return OK


@app.workflow
async def children(count: int) -> dict[str, bool]:
    for _ in range(count):
        await steps(0, TEXT)
    return OK


@app.workflow
async def to_itself(count: int) -> dict[str, bool]:
    here = current().workflow_id
    for number in range(count):
        await send(here, "mail", number)
        await receive("mail", int)
    return OK


@app.workflow
def blocking_steps(count: int) -> dict[str, bool]:
    for number in range(count):
        add_in_thread(number)
    return OK


@dataclass(frozen=True)
class Feature:
    """``more``: what a workflow of ``workload`` has more than one of ``base`` (another feature's name; None: it is a
    whole workflow), ``uses`` times. ``options``: keywords of ``Executor``."""

    name: str
    base: str | None
    unit: Callable[[], Item]
    uses: int = USES
    workflows: int = 1
    steps: int = 0
    backlog: int = BACKLOG_WORKFLOWS

    @property
    def workload(self) -> Workload:
        def unit(_number: int, _pair: PairMaker) -> Iterable[Item]:
            return (self.unit(),)

        return Workload(
            f"{PREFIX}{self.name}", self.name, unit, workflows=self.workflows, steps=self.steps, backlog=self.backlog
        )


PREFIX = "feature: "
WORKFLOW, STEP, STEP_MORE = "a workflow", "a step", "each step more"


def _started(bound: Any) -> Callable[[], Item]:
    return lambda: bound


FEATURES = (
    Feature(WORKFLOW, None, _started(steps.bind(0, TEXT)), uses=1),
    Feature(STEP, WORKFLOW, _started(steps.bind(1, TEXT)), uses=1, steps=1),
    Feature(STEP_MORE, STEP, _started(steps.bind(1 + USES, TEXT)), steps=1 + USES),
    Feature("steps at once (gather), each", WORKFLOW, _started(gathered_steps.bind(USES)), steps=USES),
    Feature("a step with retries and a timeout", WORKFLOW, _started(careful_steps.bind(USES)), steps=USES),
    Feature("a step with a heartbeat", WORKFLOW, _started(reporting_steps.bind(USES)), steps=USES),
    Feature("a step with 1 kB of result", WORKFLOW, _started(carries.bind(USES, "x" * 1000)), steps=USES),
    Feature("a step of a saga", WORKFLOW, _started(saga_steps.bind(USES)), steps=USES),
    Feature("a def step, in a thread", WORKFLOW, _started(workloads.sync_steps.bind(USES)), steps=USES, backlog=5000),
    Feature("a def workflow and step", WORKFLOW, _started(blocking_steps.bind(1)), uses=1, steps=1, backlog=5000),
    Feature("a transaction with your data", WORKFLOW, _started(transactions.bind(USES)), backlog=2000),
    Feature("now, random and uuid4", WORKFLOW, _started(side_inputs.bind(USES))),
    Feature("an attribute", WORKFLOW, _started(attributes.bind(USES))),
    Feature("an event", WORKFLOW, _started(events.bind(USES))),
    Feature("a timer (1 ms)", WORKFLOW, _started(timers.bind(USES)), backlog=10_000),
    Feature("a message, sent and received", WORKFLOW, _started(to_itself.bind(USES)), backlog=5000),
    Feature("a child", WORKFLOW, _started(children.bind(USES)), workflows=1 + USES, backlog=10_000),
    Feature("an ID in no order", WORKFLOW, lambda: (str(uuid.uuid4()), steps.bind(0, TEXT)), uses=1),
)
_WORKLOADS = {made.name: made for made in (feature.workload for feature in FEATURES)}


def find(name: str, count: int) -> Workload:
    """A workload of this name, those of features included; as ``workloads.find``."""
    return _WORKLOADS.get(name) or workloads.find(name, count)
