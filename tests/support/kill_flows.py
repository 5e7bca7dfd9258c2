"""Small workflows that say everything a workflow can say, as ``async`` and as ``def``, for ``kill_stories``."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

from sharded_wf import (
    MapFailed,
    MapPage,
    continue_as_new,
    current,
    deprecate_patch,
    map_workflow,
    patched,
    receive,
    saga,
    send,
    set_attributes,
    set_event,
    sleep_blocking,
    sleep_until,
    start_child,
    wait_event,
    wait_until,
)
from tests.support.flows import app, note, noted, say, say_in_thread, undoes
from tests.support.kill_steps import (
    MEND_TABLE,
    NEVER,
    Refused,
    falls_silent,
    falls_silent_blocking,
    hang,
    is_mended,
    mendable_note,
)

__all__ = ["MEND_TABLE", "Refused", "app"]

SOON = 0.3


# --- ended from outside -----------------------------------------------------------------------------------------------


@app.workflow
async def held() -> None:
    try:
        await receive("never")
    finally:
        await note(101)


@app.workflow
def held_blocking() -> None:
    try:
        receive.blocking("never")
    finally:
        note.blocking(101)


@app.workflow
async def holds_child() -> None:
    try:
        await note(0)
        await held()
    finally:
        await note(1)


@app.workflow
def holds_child_blocking() -> None:
    try:
        note.blocking(0)
        held_blocking()
    finally:
        note.blocking(1)


@app.workflow
async def never_tidy() -> None:
    """Its clean-up never ends."""
    try:
        await note(0)
        await receive("never")
    finally:
        await note(1)
        await receive("never")


@app.workflow
def never_tidy_blocking() -> None:
    try:
        note.blocking(0)
        receive.blocking("never")
    finally:
        note.blocking(1)
        receive.blocking("never")


@app.workflow(timeout=1)
async def hasty_parent() -> None:
    await holds_child()


@app.workflow(timeout=1)
def hasty_parent_blocking() -> None:
    holds_child_blocking()


@app.workflow(run_timeout=1)
async def hasty_run() -> None:
    await waits_for_good()


@app.workflow(run_timeout=1)
def hasty_run_blocking() -> None:
    try:
        sleep_blocking(NEVER)
    finally:
        note.blocking(1)


async def waits_for_good() -> None:
    try:
        await asyncio.sleep(NEVER)
    finally:
        await note(1)


# --- repair -----------------------------------------------------------------------------------------------------------


@app.workflow
async def mendable_leaf(key: str) -> str:
    return await mendable_note(1, key)


@app.workflow
def mendable_leaf_blocking(key: str) -> str:
    return mendable_note.blocking(1, key)


@app.workflow
async def mendable_parent(key: str) -> str:
    await note(0)
    found = await mendable_leaf(key)
    await note(2)
    return found


@app.workflow
def mendable_parent_blocking(key: str) -> str:
    note.blocking(0)
    found = mendable_leaf_blocking(key)
    note.blocking(2)
    return found


@app.workflow
def chain_blocking(count: int) -> int:
    for number in range(count):
        note.blocking(number)
    return count


# --- messages, events, attributes -------------------------------------------------------------------------------------


@app.workflow
def noted_inbox_blocking(count: int) -> list[str]:
    found = []
    for number in range(count):
        found.append(receive.blocking("mail", str))
        note.blocking(number)
    return found


@app.workflow
def outbox_blocking(receivers: list[str], count: int) -> int:
    for number in range(count):
        for receiver in receivers:
            send.blocking(receiver, "mail", f"{current().workflow_id}#{number}")
    return count


@app.workflow
async def shows() -> None:
    await set_event("early", 1)
    await receive("go")
    await set_event("late", 2)


@app.workflow
def shows_blocking() -> None:
    set_event.blocking("early", 1)
    receive.blocking("go")
    set_event.blocking("late", 2)


@app.workflow
async def watches(target: str) -> list[int]:
    early = await wait_event(target, "early", int)
    await send(target, "go", 0)
    return [early, await wait_event(target, "late", int)]


@app.workflow
def watches_blocking(target: str) -> list[int]:
    early = wait_event.blocking(target, "early", int)
    send.blocking(target, "go", 0)
    return [early, wait_event.blocking(target, "late", int)]


@app.workflow
async def stages() -> None:
    """An attribute after each step; at last one is removed."""
    await set_attributes(temporary=True)
    for number in range(2):
        await note(number)
        await set_attributes(stage=number, label=f"stage {number}")
    await set_attributes(temporary=None)


@app.workflow
def stages_blocking() -> None:
    set_attributes.blocking(temporary=True)
    for number in range(2):
        note.blocking(number)
        set_attributes.blocking(stage=number, label=f"stage {number}")
    set_attributes.blocking(temporary=None)


# --- a long life ------------------------------------------------------------------------------------------------------


@app.workflow
async def renews(drawn: list[str]) -> list[str]:
    """In each run a message, what the run draws (which replay compares), and a patch."""
    if not drawn:
        await start_child(held.bind(), parent_close="cancel")
    told = await receive("go", int)
    deprecate_patch("older")
    await say(f"{current().now()} {current().random().random()}")
    drawn = [*drawn, await say(f"{told} {current().uuid4()}")]
    if patched("noted"):
        await note(current().run)
    if len(drawn) < 3:
        continue_as_new(renews.bind(drawn))
    return drawn


@app.workflow
def renews_blocking(drawn: list[str]) -> list[str]:
    if not drawn:
        start_child.blocking(held_blocking.bind(), parent_close="cancel")
    told = receive.blocking("go", int)
    deprecate_patch("older")
    say.blocking(f"{current().now()} {current().random().random()}")
    drawn = [*drawn, say.blocking(f"{told} {current().uuid4()}")]
    if patched("noted"):
        note.blocking(current().run)
    if len(drawn) < 3:
        continue_as_new(renews_blocking.bind(drawn))
    return drawn


# --- time -------------------------------------------------------------------------------------------------------------


@app.workflow
async def waits(peer: str, key: str) -> list[object]:
    """For what comes, and for what does not come in time."""
    said: list[object] = []
    await sleep_until(current().now() + timedelta(seconds=SOON))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON):
            await hang()
            said.append("what hangs")
    with contextlib.suppress(TimeoutError):
        said.append(await asyncio.wait_for(receive("never"), SOON))
    with contextlib.suppress(TimeoutError):
        late = await wait_until(is_mended, "never", every=0.1, timeout=SOON)
        said.append(late)
    with contextlib.suppress(TimeoutError):
        said.append(await wait_event(peer, "never", timeout=SOON))
    child = await held.start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SOON):
            await child.result()
            said.append("the child's result")
    await child.cancel()
    said.append(await asyncio.wait_for(say("quick"), 60))
    found = await wait_until(is_mended, key, every=0.1)
    return [*said, found, *await falls_silent()]


@app.workflow
def waits_blocking(peer: str, key: str) -> list[object]:
    said: list[object] = []
    sleep_until.blocking(current().now() + timedelta(seconds=SOON))
    with contextlib.suppress(TimeoutError):
        said.append(receive.blocking("never", timeout=SOON))
    with contextlib.suppress(TimeoutError):
        late = wait_until.blocking(is_mended, "never", every=0.1, timeout=SOON)
        said.append(late)
    with contextlib.suppress(TimeoutError):
        said.append(wait_event.blocking(peer, "never", timeout=SOON))
    child = held.start_blocking()
    with contextlib.suppress(TimeoutError):
        child.result(timeout=SOON)
        said.append("the child's result")
    child.cancel()
    said.append(say.blocking("quick"))
    found = wait_until.blocking(is_mended, key, every=0.1)
    return [*said, found, *falls_silent_blocking()]


# --- several at once --------------------------------------------------------------------------------------------------


async def noted_name(number: int) -> str:
    await note(number)
    return str(number)


async def refused() -> None:
    await say_in_thread.in_thread("about to fail")
    raise Refused


@app.workflow
async def races() -> list[list[str]]:
    """Each time the winner is told to a step, which replay compares with what it was told before."""
    both = await asyncio.gather(noted_name(0), noted_name(1))
    runners = [asyncio.create_task(one) for one in (noted_name(2), noted_name(3), held())]
    done, pending = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
    for loser in pending:
        loser.cancel()
    first = [str(one.result()) for one in done]
    await say(",".join(first))
    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(held())
            group.create_task(refused())
    order = [await one for one in asyncio.as_completed([noted_name(number) for number in (4, 5, 6)])]
    await say(",".join(order))
    return [[*both], first, order]


@app.step
async def three_pages(begin: int | None) -> MapPage[int]:
    """Six numbers, two a page."""
    first = begin or 0
    return MapPage([first, first + 1], first + 2 if first < 4 else None)


@app.workflow
async def item(number: int) -> int:
    """Numbers 1 and 4 fail until the workflow that all belong to is mended."""
    root = current().workflow_id.partition("/")[0]
    await (mendable_note(number, root) if number % 3 == 1 else note(number))
    return number


@app.workflow
async def redriven() -> list[int]:
    tolerant = await map_workflow(item, [0, 1, 2], tolerated_failures=1)
    try:
        result = await map_workflow(item, three_pages, concurrency=2, tolerated_failures=1)
    except MapFailed as error:
        result = error.result
    await set_event("failed", result.failed)
    await receive("go")
    again = await map_workflow(item, result)
    return [tolerant.succeeded, tolerant.failed, result.failed, result.succeeded + again.succeeded, again.failed]


@app.workflow
def redriven_blocking() -> list[int]:
    tolerant = map_workflow.blocking(item, [0, 1, 2], tolerated_failures=1)
    try:
        result = map_workflow.blocking(item, three_pages, concurrency=2, tolerated_failures=1)
    except MapFailed as error:
        result = error.result
    set_event.blocking("failed", result.failed)
    receive.blocking("go")
    again = map_workflow.blocking(item, result)
    return [tolerant.succeeded, tolerant.failed, result.failed, result.succeeded + again.succeeded, again.failed]


@app.workflow
def saga_of_children_blocking(count: int) -> None:
    with saga.blocking() as s:
        for number in range(10, 10 + count):
            s.step(lambda n=number: noted.blocking(n), undo=undoes.blocking)  # type: ignore[misc]
        raise ValueError("on purpose")
