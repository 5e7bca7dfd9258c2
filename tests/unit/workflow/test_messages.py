"""``send``, ``receive``, children and cancelling."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sharded_wf import App, OutsideWorkflow, StoredValueMismatch, WorkflowCancelled, receive, send
from sharded_wf.model.history import EntryKind, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, Message
from sharded_wf.workflow.mailbox import Mailbox
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("messages")
undone: list[str] = []


@app.step
async def note(text: str) -> str:
    undone.append(text)
    return text


@app.step
async def long() -> None:
    await asyncio.sleep(1000)


@app.workflow
async def collects(count: int) -> list[int]:
    return [await receive("number", int) for _ in range(count)]


@app.workflow
async def impatient() -> list[Any]:
    got: list[Any] = []
    for _ in range(3):
        try:
            got.append(await receive("number", int, timeout=10))
        except TimeoutError as error:
            got.append(str(error))
    return got


@app.workflow
async def changes_its_mind() -> list[int]:
    first = asyncio.create_task(receive("number", int))
    await asyncio.sleep(0)
    event = asyncio.create_task(receive("stop", bool))
    await event
    first.cancel()
    return [await receive("number", int), await receive("number", int)]


@app.workflow
async def sends(to: str) -> None:
    await asyncio.gather(*(send(to, "number", n) for n in range(3)))
    cancelled = asyncio.create_task(send(to, "number", 99))
    cancelled.cancel()
    await asyncio.sleep(0)
    await send(to, "number", 3)


@app.workflow
async def gives_up_sending(to: str) -> None:
    first = asyncio.create_task(send(to, "number", 1))
    await note("between")
    first.cancel()
    await send(to, "number", 2)


@app.workflow
async def half(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@app.workflow
async def parent(numbers: list[int]) -> list[Any]:
    results = await asyncio.gather(*(half(number) for number in numbers), return_exceptions=True)
    return [repr(result) for result in results]


@app.workflow
async def tidies_up() -> str:
    try:
        await long()
    except asyncio.CancelledError:
        await note("undone")
        raise
    return "went on"


@app.workflow
async def ignores_it() -> str:
    try:
        await long()
    except asyncio.CancelledError:
        return "stayed"
    return "went on"


@app.workflow
async def waits_for_child() -> str:
    return await tidies_up()


def message(seq: int, payload: bytes, topic: str = "number", sender: str = "client") -> Message:
    return Message("w", topic, sender, seq, payload, 0)


def replay(workflow: Any, args: tuple[Any, ...], history: History) -> Any:
    async def main() -> Any:
        host = MemoryHost(app)
        host.begin(workflow.bind(*args), history=history)
        outcome = await host.outcome()
        host.close()
        return outcome

    return run_virtual(main())


def test_messages_are_received_once_and_in_order() -> None:
    async def main() -> tuple[list[int], History]:
        host = MemoryHost(app)
        run = host.begin(collects.bind(4))
        await asyncio.sleep(1)
        waiting = run.waiting()
        assert waiting is not None and waiting.deadline_us is None
        host.post(message(2, b"20"))
        host.post(message(1, b"10"))
        host.post(message(1, b"5", sender="other"))
        run.offer([message(1, b"10"), message(2, b"20")])
        host.post(message(3, b"30"))
        result = await host.result(collects.bind(4))
        assert not host.stored["w"].mailbox
        host.close()
        return result, host.stored["w"].history()

    result, history = run_virtual(main())
    assert sorted(result) == [5, 10, 20, 30]
    assert [number for number in result if number != 5] == [10, 20, 30]
    assert replay(collects, (4,), history).output == str(result).replace(" ", "").encode()


def test_a_message_of_the_wrong_type_is_an_error_at_its_line() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        host.begin(collects.bind(1))
        host.post(message(1, b'"text"'))
        with pytest.raises(StoredValueMismatch):
            await host.result(collects.bind(1))
        host.close()

    run_virtual(main())


def test_receive_times_out() -> None:
    async def main() -> tuple[list[Any], History]:
        host = MemoryHost(app)
        run = host.begin(impatient.bind())
        await asyncio.sleep(15)
        waiting = run.waiting()
        assert waiting is not None and waiting.deadline_us is not None
        host.post(message(1, b"1"))
        result = await host.result(impatient.bind())
        host.close()
        return result, host.stored["w"].history()

    result, history = run_virtual(main())
    text = "no message on topic 'number' in time"
    assert result == [text, 1, text]
    assert replay(impatient, (), history).status is Status.SUCCEEDED


def test_a_message_for_a_cancelled_receive_goes_to_the_next() -> None:
    async def main() -> tuple[list[int], History]:
        host = MemoryHost(app)
        run = host.begin(changes_its_mind.bind())
        await asyncio.sleep(1)
        # Both are recorded in one flush; when the first is delivered last, its receive has been given up.
        run.offer([message(1, b"true", topic="stop"), message(1, b"1")])
        host.stored["w"].mailbox += [message(1, b"true", topic="stop"), message(1, b"1")]
        await asyncio.sleep(1)
        host.post(message(2, b"2"))
        result = await host.result(changes_its_mind.bind())
        host.close()
        return result, host.stored["w"].history()

    result, history = run_virtual(main())
    assert result == [1, 2]
    assert replay(changes_its_mind, (), history).output == b"[1,2]"


def test_sent_messages_are_numbered_without_gaps() -> None:
    async def main() -> list[Message]:
        host = MemoryHost(app)
        host.begin(collects.bind(4), "receiver")
        await host.result(sends.bind("receiver"))
        assert await host.result(collects.bind(4), "receiver") == [0, 1, 2, 3]
        host.close()
        return host.sent

    sent = run_virtual(main())
    assert [(m.sender.partition("@")[0], m.seq, m.payload) for m in sent] == [("w", n + 1, b"%d" % n) for n in range(4)]


def test_a_message_that_may_have_been_sent_is_sent_again_even_if_given_up() -> None:
    async def main() -> list[Message]:
        bound = gives_up_sending.bind("receiver")
        host = MemoryHost(app)
        await host.result(bound)
        steps = [entry for entry in host.stored["w"].entries if entry.kind is EntryKind.STEP]
        host.close()
        # Died after the step was recorded, and before the message was.
        second = MemoryHost(app)
        second.begin(bound, history=History((msgspec.structs.replace(steps[0], ordinal=1),)))
        await second.result(bound)
        second.close()
        return second.sent

    assert [(m.seq, m.payload) for m in run_virtual(main())] == [(1, b"1"), (2, b"2")]


def test_send_and_receive_belong_into_workflows() -> None:
    with pytest.raises(OutsideWorkflow, match="works only in a workflow's own code"):
        _ = receive("topic", int)
    with pytest.raises(OutsideWorkflow):
        _ = send("w", "topic", 1)


def test_children_have_ids_that_extend_the_parents() -> None:
    async def main() -> tuple[list[Any], set[str], History]:
        host = MemoryHost(app)
        result = await host.result(parent.bind([2, 3, 4]))
        host.close()
        return result, set(host.stored), host.stored["w"].history()

    result, ids, history = run_virtual(main())
    assert result == ["1", "ValueError('3 is odd')", "2"]
    assert ids == {"w", "w/half-1", "w/half-2", "w/half-3"}
    assert {entry.kind for entry in history.entries} == {EntryKind.CHILD}
    assert replay(parent, ([2, 3, 4],), history).status is Status.SUCCEEDED


def cancel_after_a_second(workflow: Any) -> tuple[Any, History]:
    async def main() -> tuple[Any, History]:
        undone.clear()
        host = MemoryHost(app)
        host.begin(workflow.bind())
        await asyncio.sleep(1)
        host.post(message(1, b"null", topic=CANCEL_TOPIC))
        outcome = await host.outcome()
        host.close()
        return outcome, host.stored["w"].history()

    return run_virtual(main())


def test_cancelling_lets_the_workflow_tidy_up() -> None:
    outcome, history = cancel_after_a_second(tidies_up)
    assert outcome.status is Status.CANCELLED
    assert undone == ["undone"]
    assert [entry.kind for entry in history.entries] == [EntryKind.CANCEL, EntryKind.STEP]
    assert replay(tidies_up, (), history).status is Status.CANCELLED
    assert undone == ["undone"]


def test_a_workflow_may_survive_being_cancelled() -> None:
    outcome, history = cancel_after_a_second(ignores_it)
    assert outcome.output == b'"stayed"'
    assert replay(ignores_it, (), history).output == b'"stayed"'


def test_a_cancelled_child_is_an_error_in_its_parent() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        host.begin(waits_for_child.bind())
        await asyncio.sleep(1)
        host.post(Message("w/tidies_up-1", CANCEL_TOPIC, "client", 1, b"null", 0))
        with pytest.raises(WorkflowCancelled):
            await host.result(waits_for_child.bind())
        host.close()

    run_virtual(main())


def test_the_mailbox_keeps_each_senders_order() -> None:
    mailbox = Mailbox()
    mailbox.remember("client", "number", 1)
    assert not mailbox.accept(message(1, b"1"))
    assert not mailbox.accept(message(3, b"3"))
    assert mailbox.take("number") is None
    assert mailbox.accept(message(2, b"2"))
    assert not mailbox.accept(message(2, b"2"))
    assert len(mailbox) == 2
    taken = [mailbox.take("number"), mailbox.take("number"), mailbox.take("number")]
    assert [m.seq if m else None for m in taken] == [2, 3, None]
