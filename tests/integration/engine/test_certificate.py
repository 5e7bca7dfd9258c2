"""The judge is judged: every kind of violation is planted into the rows of a sound run, and must be found by name."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.support.certificate import MESSAGE, Row, Rows, judge
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, inbox, outbox

IDS = ["a", "b", "r", "s"]
LATER = timedelta(seconds=1)


def sound(cluster: TestCluster) -> Rows:
    """The rows after two chains of two steps, and two messages from s to r."""

    async def go() -> Rows:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            handles = [
                await client.start(chain.bind(2), id="a"),
                await client.start(chain.bind(2), id="b"),
                await client.start(inbox.bind(2), id="r"),
                await client.start(outbox.bind(["r"], 2), id="s"),
            ]
            for handle in handles:
                await handle.result(20)
            return await asyncio.to_thread(cluster.certify, IDS)

    return asyncio.run(go())


def _workflow(rows: Rows, id_: str) -> dict[str, object]:
    return next(row for row in rows.workflow if row["id"] == id_)


def _step(rows: Rows, id_: str, ordinal: int) -> Row:
    return next(row for row in rows.step if row["workflow_id"] == id_ and row["ordinal"] == ordinal)


def _received(rows: Rows) -> dict[str, object]:
    slot = _workflow(rows, "r")["slot"]
    recorded = next(row for row in rows.step if row["workflow_id"] == "r" and row["kind"] == MESSAGE)
    return {"slot": slot, "workflow_id": "r", "topic": "mail", "sender": recorded["output"]["sender"], "seq": 1}


def _line(rows: Rows, **changes: object) -> dict[str, object]:
    line = next(line for line in rows.ledger if line["workflow"] == "a" and line["number"] == 0)
    return {**line, "token": uuid.uuid4().hex, **changes}


def _lost(rows: Rows) -> None:
    rows.workflow = [row for row in rows.workflow if row["id"] != "a"]
    rows.step = [row for row in rows.step if row["workflow_id"] != "a"]


def _again_after_recorded(rows: Rows) -> None:
    rows.ledger.append(_line(rows, at=_step(rows, "a", 1)["completed_at"] + LATER))


def _forgotten_queue(rows: Rows) -> None:
    rows.ready.append({"slot": _workflow(rows, "a")["slot"], "id": "a"})


def _stale_claim(rows: Rows) -> None:
    rows.claim.append({"slot": "x", "id": uuid.uuid4(), "workflow_ids": ["a"]})


def _recorded_without_body(rows: Rows) -> None:
    _step(rows, "a", 1)["output"] = uuid.uuid4().hex


def _two_results(rows: Rows) -> None:
    _step(rows, "b", 1)["output"] = _step(rows, "b", 2)["output"]


def _overdue(rows: Rows) -> None:
    rows.timer.append({"slot": "x", "workflow_id": "a", "due_at": datetime.now(UTC) - timedelta(minutes=1)})


PLANTED: dict[str, Callable[[Rows], object]] = {
    "I1: the start of a was acknowledged and is lost": _lost,
    "I2: a is in 2 slots": lambda rows: rows.workflow.append({**_workflow(rows, "a"), "slot": "elsewhere"}),
    "I2: a has no outcome, its status is 0": lambda rows: _workflow(rows, "a").update(status=0),
    "I2: a has status 3 and ['output', 'error']": lambda rows: _workflow(rows, "a").update(error={}),
    "I2: a has status 3 and completed_at None": lambda rows: _workflow(rows, "a").update(completed_at=None),
    "I2: a has status 4 and 0 rows in failed": lambda rows: _workflow(rows, "a").update(
        status=4, output=None, error={}
    ),
    "I3: a has a result and an error": lambda rows: _step(rows, "a", 1).update(error={}),
    "I3: the ordinals of a are [1, 3]": lambda rows: _step(rows, "a", 2).update(ordinal=3),
    "and not ghost itself": lambda rows: _step(rows, "a", 1).update(workflow_id="ghost"),
    "I4: a runs under the claim": lambda rows: _workflow(rows, "a").update(status=1),
    "I4: a has status 3 and stands 1 times in the queue": _forgotten_queue,
    "I4: ghost stands in the queue": lambda rows: rows.ready.append({"slot": "x", "id": "ghost"}),
    "ran again": _again_after_recorded,
    "was given different idempotency keys": lambda rows: rows.ledger.append(_line(rows, key="another")),
    "have the same idempotency key": lambda rows: rows.ledger.append(_line(rows, number=7)),
    "no body of note returned what is recorded": _recorded_without_body,
    "is recorded twice": _two_results,
    "a claim is left behind": _stale_claim,
    "a wake is left behind, for r": lambda rows: rows.wake.append({"slot": "x", "workflow_id": "r"}),
    "a timer is left behind, of a": _overdue,
    "I6: a message is left in the outbox": lambda rows: rows.outbox.append({**_received(rows), "receiver": "r"}),
    "I6: a message was received and is still there": lambda rows: rows.message.append(_received(rows)),
}


def test_every_planted_violation_is_found(cluster: TestCluster) -> None:
    rows = sound(cluster)
    assert judge(rows, IDS) == []
    for complaint, plant in PLANTED.items():
        planted = copy.deepcopy(rows)
        plant(planted)
        found = judge(planted, IDS)
        assert any(complaint in words for words in found), f"{complaint!r} was not found, only {found}"


def test_a_zombie_is_excused_and_nobody_else(cluster: TestCluster) -> None:
    rows = sound(cluster)
    _again_after_recorded(rows)
    pid = rows.ledger[-1]["pid"]
    assert judge(rows, IDS, zombies={pid}) == []
    assert judge(rows, IDS, zombies={pid + 1}) != []
