"""``continue_as_new``: nothing is lost between two runs, nothing done twice; and the bounds that make it necessary."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, cast

import pytest

from sharded_wf import (
    Bound,
    DefinitionError,
    HistoryTooLong,
    LimitExceeded,
    OutsideWorkflow,
    WorkflowCancelled,
    continue_as_new,
)
from sharded_wf.model.history import EntryKind
from sharded_wf.model.workflow import CANCEL_TOPIC, Message
from sharded_wf.serialization import codec_for, values
from sharded_wf.workflow import continuation, history_limit, renewal, run, steps
from sharded_wf.workflow.run import WorkflowRun
from tests.unit.workflow import evolving_programs as programs
from tests.unit.workflow.memory_host import MemoryHost, Stored


def message(seq: int, topic: str = "go", sender: str = "friend@1") -> Message:
    return Message("w", topic, sender, seq, str(seq).encode(), 0)


def receivers(host: MemoryHost) -> int:
    waits = cast(WorkflowRun, host.runs["w"]).waits
    return 0 if waits is None else len(waits.receivers)


async def finish(bound: Bound[Any], crash_after: int | None = None, messages: int = 3) -> tuple[Any, MemoryHost]:
    """Run to the end; if the host dies, another goes on with what is durable."""
    host = MemoryHost(programs.counter, crash_after=crash_after)
    host.begin(bound)
    for seq in range(1, messages + 1):
        host.post(message(seq))
    ended = asyncio.create_task(host.outcome())
    died = asyncio.create_task(host.crashed.wait())
    await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if not ended.done():
        ended.cancel()
        host.close()
        heir = MemoryHost(programs.counter)
        heir.stored = host.stored
        for id_, stored in sorted(host.stored.items()):
            if stored.outcome is None:
                heir.take_up(id_)
            else:
                heir.finished[id_] = asyncio.Event()
                heir.finished[id_].set()
        heir._offer("w")
        host = heir
    try:
        return await host.result(bound), host
    finally:
        host.close()


@pytest.mark.parametrize("flow", [programs.count, programs.count_blocking], ids=["async", "def"])
def test_a_crash_at_every_entry_of_every_run(flow: Any) -> None:
    """Each run has two steps, a child and a message, and the flush that ends it is an entry like the others."""
    for crash_after in [None, *range(1, 25)]:
        programs.ran.clear()
        programs.keys.clear()
        result, host = asyncio.run(finish(flow.bind(0, 4), crash_after))
        assert result == [4, 4]
        stored = host.stored["w"]
        assert [entry.kind for entry in stored.entries] == [EntryKind.CONTINUED, EntryKind.STEP, EntryKind.STEP]
        assert stored.mailbox == []
        times = Counter(programs.ran)
        assert set(times) == {f"add {number}" for number in range(4)}
        assert max(times.values()) <= 2 and sum(times.values()) <= 5
        assert len(set(programs.keys)) == 4, "one key for each run, also if the step ran twice"
        children = [id_ for id_ in host.stored if id_ != "w"]
        assert children == ["w/double-1", "w/double-2", "w/double-3"], "IDs are never used again"


def test_a_message_that_was_received_is_not_received_again() -> None:
    """The sender lost the answer and sends again, after the run that received it has ended."""

    async def main() -> None:
        host = MemoryHost(programs.counter)
        host.begin(programs.count.bind(0, 3))
        for seq in (1, 1, 2, 1, 2):
            host.post(message(seq))
        assert await host.result(programs.count.bind(0, 3)) == [3, 3]
        host.close()

    asyncio.run(main())


def test_a_message_recorded_for_nobody_is_the_next_run_s() -> None:
    async def main() -> None:
        host = MemoryHost(programs.counter)
        host.begin(programs.undelivered.bind())
        await host.until(lambda: receivers(host) == 2)
        run_of_1 = host.runs["w"]
        stored = host.stored["w"]
        stored.mailbox += [message(1, "end"), message(1, "go"), message(2, "go")]
        run_of_1.offer(list(stored.mailbox))
        assert await host.result(programs.undelivered.bind()) == [1, 2]
        assert stored.mailbox == []
        host.close()

    asyncio.run(main())


def test_a_cancellation_that_comes_too_late_meets_the_next_run() -> None:
    async def main() -> None:
        host = MemoryHost(programs.counter)
        host.begin(programs.undelivered.bind())
        await host.until(lambda: receivers(host) == 2)
        stored = host.stored["w"]
        stored.mailbox += [message(1, "end"), Message("w", CANCEL_TOPIC, "me", 1, b"null", 0)]
        host.runs["w"].offer(list(stored.mailbox))
        with pytest.raises(WorkflowCancelled):
            await host.result(programs.undelivered.bind())
        assert stored.entries[0].kind is EntryKind.CONTINUED
        host.close()

    asyncio.run(main())


def test_what_code_puts_in_its_way() -> None:
    programs.ran.clear()
    result, _ = asyncio.run(finish(programs.swallow.bind(2), messages=0))
    assert result == 0
    assert programs.ran == ["add 2", "add 1", "add 0"]


def test_it_takes_the_same_function_and_belongs_into_a_workflow_s_code() -> None:
    with pytest.raises(OutsideWorkflow):
        continue_as_new(programs.double.bind(1))
    with pytest.raises(DefinitionError, match="can't continue as"):
        renewal._check_same("a/b", programs.double.bind(1))


def test_clients_messages_are_forgotten_but_workflows_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "CONTINUED_SENDERS_MAX", 2)
    received = {("a", "t"): 1, ("w@17", "t"): 1, ("b", "t"): 1, ("c", "t"): 1, ("d@8", "t"): 9}
    assert continuation._remembered(received) == [("w@17", "t", 1), ("b", "t", 1), ("c", "t", 1), ("d@8", "t", 9)]


def test_a_history_has_a_bound(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for module in (history_limit, run, steps):
        monkeypatch.setattr(module, "HISTORY_WARN_ENTRIES", 10)
    monkeypatch.setattr(history_limit, "HISTORY_MAX_ENTRIES", 50)
    with caplog.at_level(logging.WARNING, "sharded_wf.workflow"):
        result, host = asyncio.run(finish(programs.busy.bind(50), messages=0))
        assert result == 50
        warned = [record.getMessage().split(",")[0] for record in caplog.records]
        assert warned == [f"workflow w has {number} results recorded" for number in (10, 20, 40)]
        with pytest.raises(HistoryTooLong, match="wants more than 50 results: let it continue_as_new"):
            asyncio.run(finish(programs.busy.bind(51), messages=0))
    assert isinstance(host.stored["w"], Stored)


def test_a_value_has_a_bound(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(values, "PAYLOAD_WARN_BYTES", 100)
    monkeypatch.setattr(values, "PAYLOAD_MAX_BYTES", 200)
    codec = codec_for(str)
    assert len(codec.encode("x" * 98)) == 100 and not caplog.records
    codec.encode("x" * 99)
    assert "101 bytes as JSON, which every replay reads again" in caplog.text
    with pytest.raises(LimitExceeded, match="the limit is 200: store it elsewhere"):
        codec.encode("x" * 199)
