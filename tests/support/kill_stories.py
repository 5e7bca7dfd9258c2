"""What happens to the workflows of ``kill_flows``, told so that it can be told again from the start.

A story starts workflows, asks things of them, and judges what came of it. Executors may be killed and slots moved
meanwhile. If the process that tells it is killed, another one tells it from the beginning: what was started exists,
what was sent has its key, and what must not be done twice is *marked* in the ledger's database.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from sharded_wf import (
    Bound,
    Client,
    Failed,
    Handle,
    Status,
    WorkflowCancelled,
    WorkflowNotFound,
    WorkflowTerminated,
    WorkflowTimedOut,
    attr,
)
from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig
from sharded_wf.routing.shard_map import ShardMap
from tests.support import flows, kill_flows
from tests.support.flows import LEDGER_VARIABLE, expected_order
from tests.support.kill_flows import Refused, app

STORY_SECONDS = 120.0
LOOK_SECONDS = 0.05

Flow = Any
"""A workflow's definition, of either form."""


@dataclass
class Stage:
    """Where one story plays. ``here`` and ``there`` are IDs on different shards."""

    client: Client
    ledger: psycopg.AsyncConnection[tuple[Any, ...]]
    here: str
    there: str

    async def start(self, bound: Bound[Any], id_: str | None = None, **options: Any) -> Handle[Any]:
        return await self.client.start(bound, id=id_ or self.here, **options)

    async def numbers(self, id_: str) -> list[int]:
        """What the workflow and those below it wrote into the ledger, in order; what was written again counts once."""
        found = await self.ledger.execute(
            "select number from ledger where workflow = %s or starts_with(workflow, %s) order by line", (id_, f"{id_}/")
        )
        return list(dict.fromkeys(number for (number,) in await found.fetchall()))

    async def noted(self, id_: str, number: int) -> None:
        """Wait until the body that writes this number has begun."""

        async def is_there() -> bool:
            return number in await self.numbers(id_)

        await self.until(is_there)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask again until it holds; the story's own time is the bound."""
        while not await condition():  # noqa: ASYNC110 - of a database
            await asyncio.sleep(LOOK_SECONDS)

    async def is_marked(self, mark: str) -> bool:
        found = await self.ledger.execute("select from mend where key = %s", (mark,))
        return await found.fetchone() is not None

    async def mark(self, mark: str) -> None:
        await self.ledger.execute("insert into mend values (%s) on conflict do nothing", (mark,))

    async def cancelled(self, *ids: str) -> None:
        """Each has ended, cancelled."""
        for id_ in ids:
            with raises(WorkflowCancelled):
                await self.client.get_handle(id_).result()


@contextlib.contextmanager
def raises(*kinds: type[BaseException]) -> Any:
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {kinds} was raised")


# --- stories ----------------------------------------------------------------------------------------------------------


async def cancels(at: Stage, parent: Flow, child: str) -> None:
    handle = await at.start(parent.bind())
    await at.noted(at.here, 0)
    asked = await at.is_marked(at.here)
    await at.mark(at.here)
    await handle.cancel()
    await at.cancelled(at.here)
    assert asked or (await at.numbers(at.here))[-1] in (1, 101)  # a second request reaches the clean-up itself
    if await at.client.describe(f"{at.here}/{child}-1") is not None:
        await at.cancelled(f"{at.here}/{child}-1")


async def has_no_time_to_clean_up(at: Stage, never_tidy: Flow) -> None:
    handle = await at.start(never_tidy.bind())
    await at.noted(at.here, 0)
    asked = await at.is_marked(at.here)
    await at.mark(at.here)
    await handle.cancel(cleanup=SHORT)
    with raises(WorkflowCancelled if asked else WorkflowTerminated):  # a second request reaches the clean-up itself
        await handle.result()


async def terminates(at: Stage, parent: Flow, child: str) -> None:
    handle = await at.start(parent.bind())
    await at.noted(at.here, 0)
    await handle.terminate()
    with raises(WorkflowTerminated):
        await handle.result()
    assert 1 not in await at.numbers(at.here), "a terminated workflow cleaned up"
    if await at.client.describe(f"{at.here}/{child}-1") is not None:
        await at.cancelled(f"{at.here}/{child}-1")


async def pauses(at: Stage, inbox: Flow) -> None:
    handle = await at.start(inbox.bind(2))
    await at.client.send(at.here, "mail", "a", idempotency_key=f"{at.here}-a")
    await at.noted(at.here, 0)
    await handle.pause()
    for _ in range(2):
        await at.client.send(at.here, "mail", "b", idempotency_key=f"{at.here}-b")
    if not await at.is_marked(f"{at.here}-unpaused"):

        async def is_held() -> bool:
            said = await handle.describe()
            return said.paused and said.status is Status.PARKED

        await at.until(is_held)
        assert await at.numbers(at.here) == [0], "a paused workflow began a step"
        await at.mark(f"{at.here}-unpaused")
    await handle.unpause()
    assert await handle.result() == ["a", "b"]


async def resumes(at: Stage, parent: Flow, _: str) -> None:
    handle = await at.start(parent.bind(at.here))
    if not await at.is_marked(at.here):
        with raises(Refused):
            await handle.result()
        await at.mark(at.here)
    await at.client.resume(at.here)
    assert await handle.result()
    assert await at.numbers(at.here) == [0, 1, 2]


async def forks(at: Stage, chain: Flow) -> None:
    assert await (await at.start(chain.bind(4))).result() == 4
    fork = await at.client.fork(at.here, from_step=3, new_id=at.there)
    assert await fork.result() == 4
    assert await at.numbers(at.there) == [2, 3], "the fork began elsewhere"


async def repairs_in_bulk(at: Stage, leaf: Flow) -> None:
    ids = [f"{side}.{number}" for side in (at.here, at.there) for number in range(4)]
    handles = await at.client.start_many((id_, leaf.bind(at.here)) for id_ in ids)
    if not await at.is_marked(at.here):
        for handle in handles:
            with raises(Refused):
                await handle.result()
        await at.mark(at.here)
    wanted = Failed(name=leaf.name, error="Refused")
    await at.client.fork_many(wanted, from_step=1)
    await at.client.resume_many(wanted)
    for id_ in ids:
        assert await at.client.get_handle(id_).result()
        assert await at.client.get_handle(f"{id_}-fork").result()


async def writes(at: Stage, inbox: Flow, outbox: Flow) -> None:
    """To each other, and from outside: the same again before it was received, and after."""
    first = ("mail", "outside#0")
    handle = await at.start(inbox.bind(4), message=first, idempotency_key=f"{at.here}-0")
    await at.start(outbox.bind([at.here], 2), at.there)
    await at.noted(at.here, 0)
    await at.start(inbox.bind(4), message=first, idempotency_key=f"{at.here}-0")
    for _ in range(2):
        await at.client.send(at.here, "mail", "outside#1", idempotency_key=f"{at.here}-1")
    got = await handle.result()
    assert len(got) == 4 and expected_order(got, {"outside": 2, at.there: 2}) == [], got


async def shows(at: Stage, setter: Flow, watcher: Flow) -> None:
    handle = await at.start(setter.bind())
    watching = await at.start(watcher.bind(at.here), at.there)
    assert await handle.event("early", int) == 1
    assert await handle.event("late", int) == 2
    assert await watching.result() == [1, 2]
    await handle.result()


async def is_found_by_attributes(at: Stage, stages: Flow) -> None:
    for id_ in (at.here, at.there):
        await at.start(stages.bind(), id_, attributes={"story": at.here, "stage": -1})
    for id_ in (at.here, at.there):
        await at.client.get_handle(id_).result()
        assert await at.client.attributes(id_) == {"story": at.here, "stage": 1, "label": "stage 1"}
    found = await at.client.list(where=(attr("story") == at.here) & (attr("stage") == 1))
    assert sorted(one.id for one in found) == sorted((at.here, at.there))


async def undoes(at: Stage, saga: Flow, _: str) -> None:
    """What is done and undone are children."""
    handle = await at.start(saga.bind(2))
    with raises(ValueError):
        await handle.result()
    assert await at.numbers(at.here) == [10, 11, -11, -10]


async def undoes_when_cancelled(at: Stage, saga: Flow) -> None:
    """There is no time at all to clean up, and the request is made twice."""
    handle = await at.start(saga.bind(3))
    await at.noted(at.here, 1)
    for _ in range(2):
        await handle.cancel(cleanup=0)
    await at.cancelled(at.here)
    found = await at.numbers(at.here)
    done = [number for number in found if number > 0]
    assert done == [*range(1, len(done) + 1)] and found[len(done) :] == [-number for number in reversed(done)], found


async def waits(at: Stage, waiter: Flow) -> None:
    other = await at.start(flows.inbox.bind(1), at.there)
    handle = await at.start(waiter.bind(at.there, at.here))
    await asyncio.sleep(2 * kill_flows.SOON)
    await at.mark(at.here)
    *said, attempt, begun = await handle.result()
    assert (said, attempt) == (["quick", True], 2) and begun >= 2
    await at.client.send(at.there, "mail", "", idempotency_key=at.here)
    await other.result()
    await at.cancelled(f"{at.here}/held-1")


async def has_no_more_time(at: Stage, parent: Flow, child: str, run: Flow) -> None:
    """Of a workflow with its children, from its start on; of one from its first run on; of one as its start said."""
    handles = [await at.start(parent.bind()), await at.start(run.bind(), at.there)]
    handles.append(await at.start(flows.inbox.bind(1), f"{at.there}-told", timeout=SHORT))
    for handle in handles:
        with raises(WorkflowTimedOut):
            await handle.result()
    below = f"{at.here}/{child}-1"
    if await at.client.describe(below) is not None:
        with raises(WorkflowTimedOut, WorkflowCancelled):  # its own time was over, or its parent was faster to say so
            await at.client.get_handle(below).result()


async def has_children(at: Stage, parent: Flow, _: str) -> None:
    handle = await at.start(parent.bind(2, 0.1))
    assert await handle.result() == [f"{at.here}/slow_chain-{number}" for number in (1, 2)]
    assert await at.client.get_handle(f"{at.here}/left").result() == 2
    await at.cancelled(f"{at.here}/closed")


async def races(at: Stage, racer: Flow, _: str) -> None:
    both, first, order = await (await at.start(racer.bind())).result()
    assert both == ["0", "1"] and first[0] in "23" and sorted(order) == ["4", "5", "6"]
    for child in (f"{at.here}/held-1", f"{at.here}/held-2"):
        if await at.client.describe(child) is not None:  # else it was given up before it was started
            await at.cancelled(child)


async def maps(at: Stage, mapping: Flow) -> None:
    handle = await at.start(mapping.bind())
    assert await handle.event("failed", int) == 2
    found = await at.client.map_progress(f"{at.here}/map-2")
    assert (found.status, found.failed) == (Status.SUCCEEDED, 2)
    with raises(WorkflowNotFound):
        await at.client.map_progress(at.here)
    await at.mark(at.here)
    await at.client.send(at.here, "go", 0, idempotency_key=at.here)
    assert await handle.result() == [2, 1, 2, 6, 0]


async def renews(at: Stage, renewing: Flow, child: str) -> None:
    """Three runs; a child of the first ends with the last."""
    handle = await at.start(renewing.bind([]))
    for number in range(3):
        await at.client.send(at.here, "go", number, idempotency_key=f"{at.here}-{number}")
    drawn = await handle.result()
    assert sorted(one.partition(" ")[0] for one in drawn) == ["0", "1", "2"]
    assert len({one.partition(" ")[2] for one in drawn}) == 3, "two runs drew the same"
    await at.cancelled(f"{at.here}/{child}-1")
    assert [number for number in await at.numbers(at.here) if number < 100] == [1, 2, 3]


SHORT = 0.5
k = kill_flows
Story = Callable[..., Awaitable[None]]
STORIES: Sequence[tuple[Story, Sequence[Any], Sequence[Any]]] = (
    (cancels, (k.holds_child, "held"), (k.holds_child_blocking, "held_blocking")),
    (has_no_time_to_clean_up, (k.never_tidy,), (k.never_tidy_blocking,)),
    (terminates, (k.holds_child, "held"), (k.holds_child_blocking, "held_blocking")),
    (pauses, (flows.noted_inbox,), (k.noted_inbox_blocking,)),
    (resumes, (k.mendable_parent, "mendable_leaf"), (k.mendable_parent_blocking, "mendable_leaf_blocking")),
    (forks, (flows.chain,), (k.chain_blocking,)),
    (repairs_in_bulk, (k.mendable_leaf,), (k.mendable_leaf_blocking,)),
    (writes, (flows.noted_inbox, flows.outbox), (k.noted_inbox_blocking, k.outbox_blocking)),
    (shows, (k.shows, k.watches), (k.shows_blocking, k.watches_blocking)),
    (is_found_by_attributes, (k.stages,), (k.stages_blocking,)),
    (undoes, (flows.saga_of_children, "noted"), (k.saga_of_children_blocking, "noted")),
    (undoes_when_cancelled, (flows.saga_waits,), (flows.saga_waits_blocking,)),
    (waits, (k.waits,), (k.waits_blocking,)),
    (
        has_no_more_time,
        (k.hasty_parent, "holds_child", k.hasty_run),
        (k.hasty_parent_blocking, "holds_child_blocking", k.hasty_run_blocking),
    ),
    (has_children, (flows.starts_children, "slow_chain"), (flows.starts_children_blocking, "slow_chain")),
    (maps, (k.redriven,), (k.redriven_blocking,)),
    (races, (k.races, "held"), ()),
    (renews, (k.renews, "held"), (k.renews_blocking, "held_blocking")),
)
"""Each story with what it is told of: ``async`` workflows, then ``def`` ones. Where a child's name is among them, the
first child lies on the other shard."""


# --- telling ----------------------------------------------------------------------------------------------------------


def _id_on(shard_map: ShardMap, shard: str, prefix: str, child: str | None) -> str:
    """An ID on this shard, the first child of which lies on another one."""
    number = 0
    while True:
        id_ = f"{prefix}-{number}"
        if shard_map.shard_of(id_) == shard and (child is None or shard_map.shard_of(f"{id_}/{child}-1") != shard):
            return id_
        number += 1


async def _tell(
    story: Story, told_of: Sequence[Any], client: Client, ledger: Any, shard_map: ShardMap, name: str
) -> str:
    """What went wrong, or nothing."""
    child = next((one for one in told_of if isinstance(one, str)), None)
    first, second = sorted(shard_map.shards)[:2]
    stage = Stage(
        client, ledger, _id_on(shard_map, first, f"{name}-h", child), _id_on(shard_map, second, f"{name}-t", None)
    )
    try:
        async with asyncio.timeout(STORY_SECONDS):
            await story(stage, *told_of)
    except Exception as error:  # noqa: BLE001 - the others are told to their ends
        shown = [f"{name}: {type(error).__name__}: {error}"]
        for begin in (stage.here, stage.there):
            for found in await client.list(limit=1000):
                if found.id.startswith(begin):
                    shown += [f"  {found}", *(f"    {entry}" for entry in (await client.history(found.id)).entries)]
        return "\n  ".join(shown)
    return ""


@contextlib.asynccontextmanager
async def open_ledger(dsn: str) -> AsyncGenerator[psycopg.AsyncConnection[tuple[Any, ...]]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("select pg_advisory_lock(1)")  # two that create it at once would collide
        await conn.execute(kill_flows.MEND_TABLE)
        await conn.execute("select pg_advisory_unlock(1)")
        yield conn


async def tell_all(config: ClusterConfig, ledger: str, prefix: str = "") -> None:
    """Tell all stories at once; fails with all that went wrong."""
    shard_map = load_map(config).shard_map
    async with app.connect(config) as client, open_ledger(ledger) as conn:
        telling = [
            _tell(story, told_of, client, conn, shard_map, f"{prefix}{story.__name__}-{form}")
            for story, *forms in STORIES
            for form, told_of in zip(("async", "def"), forms, strict=True)
            if told_of
        ]
        wrong = [said for said in await asyncio.gather(*telling) if said]
    assert not wrong, "\n  ".join(["of the stories these went wrong:", *wrong])


if __name__ == "__main__":
    asyncio.run(tell_all(ClusterConfig.from_file(sys.argv[1]), os.environ[LEDGER_VARIABLE]))
