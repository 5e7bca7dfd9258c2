"""Stored histories against changed code: what passes, what does not, and in which words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sharded_wf import App, ReplayFailed
from sharded_wf.errors import StoredValueMismatch
from sharded_wf.model.history import EMPTY_HISTORY, Heartbeat, History
from sharded_wf.model.status import Status
from sharded_wf.testing import StoredHistory, decode_history, encode_history, replay
from tests.unit.workflow import evolving_programs as programs
from tests.unit.workflow.test_versions import BOTH, live


def stored(history: History, status: Status = Status.PARKED) -> StoredHistory:
    return StoredHistory("w", "evolving/flow", status, b"[]", 1, 2, history)


def careless(asynchronous: bool) -> App:
    """The changed code without its patches."""
    return programs.after(asynchronous, lambda _name: True)[0]


@BOTH
def test_code_that_keeps_the_old_way_replays_and_code_that_does_not_is_named(asynchronous: bool) -> None:
    histories = [EMPTY_HISTORY]
    for died_after in range(1, 4):
        histories.append(live(programs.before(asynchronous), crash_after=died_after)[1])
    programs.ran.clear()
    assert replay(programs.after(asynchronous)[0], [stored(history) for history in histories]) == 4
    assert programs.ran == [], "no step runs"
    with pytest.raises(
        ReplayFailed, match=r"3 of 4 histories do not replay:\n  w \(evolving/flow\): recorded at place 0"
    ):
        replay(careless(asynchronous), [stored(history) for history in histories])


@BOTH
def test_a_workflow_that_had_ended_must_end(asynchronous: bool) -> None:
    _, whole = live(programs.before(asynchronous))
    programs.ran.clear()
    assert replay(programs.before(asynchronous)[0], [stored(whole, Status.SUCCEEDED)]) == 1
    shorter = stored(History(whole.entries[:-1]), Status.SUCCEEDED)
    with pytest.raises(ReplayFailed, match="it had ended, but the code now asks for step 'charge'"):
        replay(programs.before(asynchronous)[0], [shorter])
    assert programs.ran == []
    with pytest.raises(ReplayFailed, match="the app has no workflow"):
        replay(App("other"), [stored(whole)])


def test_a_history_survives_its_export() -> None:
    _, whole = live(programs.after(True))
    beats = (Heartbeat(7, 2, 1_700, None, b'{"page":7}'), Heartbeat(8, 1, 1_800, 1_900, b"null"))
    beating = msgspec.structs.replace(whole, heartbeats=beats)
    for one in (stored(whole), stored(EMPTY_HISTORY, Status.SUCCEEDED), stored(beating)):
        assert decode_history(encode_history(one)) == one
    older = encode_history(stored(whole)).replace(b',"heartbeats":[]', b"")
    assert decode_history(older) == stored(whole), "heartbeats were left out once"
    wrong: list[Any] = [b"{}", b"no JSON", encode_history(stored(whole)).replace(b'"format":1', b'"format":2')]
    for line in wrong:
        with pytest.raises(StoredValueMismatch):
            decode_history(line)
