"""The pure part of replay, and what a workflow gets to hear when its code has changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf import App, NonDeterminismError, NotDurableError
from sharded_wf.model.history import EMPTY_HISTORY, Entry, EntryKind, FailedAttempt, History
from sharded_wf.workflow.replay import ISSUED, MATCHED, Replay, fold
from tests.unit.workflow.memory_host import MemoryHost, run_virtual, run_workflow


class Asked:
    """The least that a command is."""

    kind = EntryKind.STEP

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = self.fingerprint = self.phase = -1

    def describe(self) -> str:
        return f"step {self.name}"


def entry_of(command: Asked, ordinal: int) -> Entry:
    return Entry(command.place, ordinal, command.kind, command.name, command.fingerprint, b"1", None, 0, 0)


requests = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=12)


@given(requests, st.data())
def test_every_request_finds_its_own_result_however_many_are_missing(
    asked: list[tuple[str, int]], data: st.DataObject
) -> None:
    first = Replay(EMPTY_HISTORY)
    commands = []
    for name, arguments in asked:
        commands.append(Asked(name))
        first.issue(commands[-1], arguments + 10 * ord(name))
    assert [command.place for command in commands] == list(range(len(commands)))
    recorded = data.draw(st.lists(st.sampled_from(commands), unique=True) if commands else st.just([]))
    second = Replay(History(tuple(entry_of(command, n + 1) for n, command in enumerate(recorded))))
    for before, (name, arguments) in zip(commands, asked, strict=True):
        again = Asked(name)
        second.issue(again, arguments + 10 * ord(name))
        assert (again.place, again.fingerprint) == (before.place, before.fingerprint)
        assert again.phase == (MATCHED if before in recorded else ISSUED)
    while second.position < second.total:
        entry = second.next_entry()
        assert entry is not None
        second.commands.pop(entry.place)
    assert len(second.fresh) == len(commands) - len(recorded)


@given(requests, st.randoms())
def test_another_order_finds_the_same_results(asked: list[tuple[str, int]], random: Any) -> None:
    first = Replay(EMPTY_HISTORY)
    commands = []
    for name, arguments in asked:
        commands.append(Asked(name))
        first.issue(commands[-1], arguments + 10 * ord(name))
    second = Replay(History(tuple(entry_of(command, n + 1) for n, command in enumerate(commands))))
    random.shuffle(asked)
    for name, arguments in asked:
        again = Asked(name)
        second.issue(again, arguments + 10 * ord(name))
        assert again.phase == MATCHED
    assert sorted(second.commands) == list(range(len(asked)))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 1000))
def test_folded_fingerprints_are_signed_64_bits_and_differ(fingerprint: int, before: int) -> None:
    folded = fold(fingerprint, before)
    assert -(2**63) <= folded < 2**63
    assert (folded == fingerprint) == (before == 0)


def test_places_skip_those_of_the_history() -> None:
    cancel = Entry(1, 1, EntryKind.CANCEL, "cancel", 0, b"null", None, 0, 0)
    replay = Replay(History((cancel,), (FailedAttempt(0, 1, b"{}", 0, 0, 0), FailedAttempt(0, 2, b"{}", 0, 0, 5))))
    commands = [Asked("a") for _ in range(3)]
    for command in commands:
        replay.issue(command, 5)
    assert [command.place for command in commands] == [0, 2, 3]
    assert replay.attempts is not None and replay.attempts[0].attempt == 2
    assert replay.free_place() == 4


app = App("changing")
version = 1


@app.step
async def one(number: int) -> int:
    return number


@app.step
async def other(number: int) -> int:
    return number


@app.workflow
async def changes() -> int:
    if version == 2:
        return await other(1)
    if version == 3:
        return await one(2)
    if version == 4:
        return 0
    if version == 5:
        await asyncio.gather(one(1), other(3))
        return await other(7)
    total = await one(1)
    await asyncio.sleep(60)
    return total + await other(total)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (2, r"recorded at place 0 is step 'one', but the code now asks for step 'other' called with \(1\) \(place 2\)"),
        (3, r"recorded at place 0 is step 'one', .*with other arguments: step 'one' called with \(2\)"),
        (4, r"recorded at place 0 is step 'one', but the code ended; it last asked for nothing more"),
        (5, r"recorded at place 1 is a timer, but the code now asks for step 'other' called with \(3\)"),
    ],
)
def test_changed_code_is_told_what_is_recorded_and_what_it_asked_for(changed: int, message: str) -> None:
    global version

    async def main() -> None:
        global version
        host = MemoryHost(app)
        version = 1
        await host.result(changes.bind())
        history = host.stored["w"].history()
        host.close()
        version = changed
        second = MemoryHost(app)
        second.begin(changes.bind(), history=history)
        with pytest.raises(NonDeterminismError, match=message):
            await second.result(changes.bind())
        assert second.stored["w"].history().entries == history.entries
        second.close()

    run_virtual(main())
    version = 1


def test_a_result_that_came_in_as_the_code_ended_is_no_mistake() -> None:
    async def main() -> None:
        racing = App("racing")

        @racing.step
        async def quick(number: int) -> int:
            return number

        @racing.workflow
        async def race() -> int:
            tasks = [asyncio.create_task(quick(n)) for n in range(3)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()

        host = MemoryHost(racing)
        run: Any = host.begin(race.bind())
        recorded: list[Entry] = []
        # One flush makes all three durable; then the process dies.
        keep: Any = lambda run, entry, *rest: recorded.append(entry)  # noqa: E731
        host.record = keep  # type: ignore[method-assign]
        await host.until(lambda: len(recorded) == 3)
        del host.runs["w"]
        run.drop()
        second = MemoryHost(racing)
        second.begin(race.bind(), history=History(tuple(recorded)))
        assert await second.result(race.bind()) == 0
        host.close()
        second.close()

    run_virtual(main())


durable = App("durable")


@durable.workflow
async def in_executor() -> None:
    await asyncio.to_thread(print)


@durable.workflow
async def connects() -> None:
    await asyncio.open_connection("localhost", 1)


@durable.workflow
async def spawns() -> None:
    await asyncio.create_subprocess_exec("true")


@durable.workflow
async def from_elsewhere() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


foreign: list[Any] = []


@durable.workflow
async def awaits_foreign() -> None:
    await foreign[0]


@pytest.mark.parametrize(
    ("workflow", "replacement"),
    [
        (in_executor, "in_thread"),
        (connects, "do it in a step"),
        (spawns, "do it in a step"),
        (from_elsewhere, "let a step await"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_can_not_be_recorded_names_the_line_and_the_replacement(workflow: Any, replacement: str) -> None:
    with pytest.raises(NotDurableError, match=rf"test_replay\.py:\d+ in {workflow.__name__}.*{replacement}"):
        run_workflow(durable, workflow.bind())


def test_a_future_of_another_loop_names_the_line() -> None:
    async def main() -> None:
        foreign[:] = [asyncio.get_running_loop().create_future()]
        host = MemoryHost(durable)
        with pytest.raises(NotDurableError, match=r"test_replay\.py:\d+ in awaits_foreign.*do it in a step"):
            await host.result(awaits_foreign.bind())
        host.close()

    run_virtual(main())
