"""Poison: what can't be stored, and what kills its process, harms nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Set
from typing import Any

import pytest

from sharded_wf import Status, WorkflowQuarantined
from sharded_wf.executor.flusher import Flusher
from sharded_wf.executor.held import Hold
from sharded_wf.model.history import Entry
from sharded_wf.store import outcomes, steps
from tests.support.certificate import QUARANTINED, SUCCEEDED
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo, killer, parent, say_twice, slow_chain
from tests.support.processes import until, wait_until
from tests.support.repair_flows import mend


@pytest.mark.parametrize("kind", ["invalid json", "nul in a name"])
def test_one_row_that_postgres_refuses_fails_its_own_workflow_alone(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    record = steps.record_steps
    largest = 0

    def poisoned(schema: str, ids: list[str], entries: list[Entry]) -> object:
        nonlocal largest
        largest = max(largest, len(ids))
        changed = [
            entry
            if id_ != "poisoned"
            else _with(entry, output=b"{no json")
            if kind == "invalid json"
            else _with(entry, name="a\0b")
            for id_, entry in zip(ids, entries, strict=True)
        ]
        return record(schema, ids, changed)

    monkeypatch.setattr(steps, "record_steps", poisoned)
    ids = [f"w-{number}" for number in range(300)]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            all_ids = [*ids[:150], "poisoned", *ids[150:]]
            await client.start_many((id_, say_twice.bind(id_)) for id_ in all_ids)
            async with app.executor(cluster.config) as executor:
                async with asyncio.timeout(60):
                    assert await asyncio.gather(*(client.get_handle(id_, str).result() for id_ in ids)) == [
                        i + i for i in ids
                    ]
                    with pytest.raises(ValueError, match="Postgres refused"):
                        await client.get_handle("poisoned").result()
                # (A client may hear of an outcome before the executor has the answer to its COMMIT.)
                await until(lambda: executor.statistics()["held"] == 0, "that none is held")
                rows = await asyncio.to_thread(cluster.certify, all_ids)
                assert not [row for row in rows.step if row["workflow_id"] == "poisoned"]

    asyncio.run(go())
    assert largest > 10, "the poisoned row was never one of many"


def _with(entry: Entry, *, output: bytes | None = None, name: str | None = None) -> Entry:
    return Entry(
        entry.place, entry.ordinal, entry.kind, entry.name if name is None else name, entry.fingerprint,
        entry.output if output is None else output, entry.error, entry.started_at, entry.completed_at,
    )  # fmt: skip


def _poison_outcome(monkeypatch: pytest.MonkeyPatch, poisoned_id: str) -> None:
    succeed = outcomes.succeed

    def poisoned(schema: str, ids: list[str], outputs: list[bytes], *rest: Any) -> object:
        changed = [b"{no" if id_ == poisoned_id else output for id_, output in zip(ids, outputs, strict=True)]
        return succeed(schema, ids, changed, *rest)

    monkeypatch.setattr(outcomes, "succeed", poisoned)


def test_an_outcome_that_postgres_refuses(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused in the same flush as the successes of others."""
    _poison_outcome(monkeypatch, "poisoned")

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            ids = [f"w-{number}" for number in range(100)]
            await client.start_many((id_, echo.bind(id_)) for id_ in [*ids, "poisoned"])
            async with asyncio.timeout(30):
                await asyncio.gather(*(client.get_handle(id_, str).result() for id_ in ids))
                with pytest.raises(ValueError, match="Postgres refused"):
                    await client.get_handle("poisoned").result()
            await asyncio.to_thread(cluster.certify, [*ids, "poisoned"])

    asyncio.run(go())


def test_a_childs_outcome_that_postgres_refuses(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is held by the same executor and records it in the same flush, beside those of other children."""
    _poison_outcome(monkeypatch, "a/chain-7")
    heirs: set[str] = set()
    tear = Flusher._tear

    def noted(self: Flusher, gone: Set[Hold], parted: Set[Hold] = frozenset()) -> None:
        heirs.update(hold.run.id for hold in parted)
        tear(self, gone, parted)

    monkeypatch.setattr(Flusher, "_tear", noted)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            handles = [await client.start(parent.bind(20, 1), id=id_) for id_ in ("a", "b")]
            async with asyncio.timeout(30):
                with pytest.raises(ValueError, match="Postgres refused"):
                    await handles[0].result()
                assert await handles[1].result() == 20
                with pytest.raises(ValueError, match="Postgres refused"):
                    await client.get_handle("a/chain-7").result()
            await until(lambda: all(status >= SUCCEEDED for status in cluster.statuses().values()), "the end of all")
            await asyncio.to_thread(cluster.certify, ["a", "b"])

    asyncio.run(go())
    assert "a" in heirs, "the parent was never torn from the child"


@pytest.mark.sampled
def test_a_workflow_that_kills_its_process_is_quarantined_and_its_neighbours_are_not(cluster: TestCluster) -> None:
    """Workers that are restarted, as a supervisor would, until the killer is caught running alone."""
    neighbours = [f"w-{number}" for number in range(30)]

    async def start() -> None:
        async with app.connect(cluster.config) as client:
            await client.start_many((id_, slow_chain.bind(2, 0.3)) for id_ in neighbours)
            await client.start(killer.bind(), id="killer")
            await client.start_many((f"late-{number}", chain.bind(1)) for number in range(20))

    asyncio.run(start())
    ids = [*neighbours, "killer", *(f"late-{number}" for number in range(20))]
    with cluster.worker("--processes", "2") as workers:
        try:
            wait_until(
                lambda: all(status >= SUCCEEDED for status in cluster.statuses().values()),
                "the end of all",
                120,
                interval=0.2,
            )
            rows = cluster.certify(ids)
        finally:
            workers.terminate()  # not killed: its processes are in groups of their own
            workers.wait()
            print(workers.output())
        assert "isolated" in workers.output()
    by_status = Counter(row["status"] for row in rows.workflow)
    assert by_status == {SUCCEEDED: len(ids) - 1, QUARANTINED: 1}
    (quarantined,) = [row for row in rows.workflow if row["status"] == QUARANTINED]
    assert quarantined["id"] == "killer"
    assert [row["workflow_id"] for row in rows.failed] == ["killer"]

    async def look() -> None:
        async with app.connect(cluster.config) as client:
            with pytest.raises(WorkflowQuarantined):
                await client.get_handle("killer").result(20)
            listed = await client.list(status=Status.QUARANTINED)
            assert [one.id for one in listed] == ["killer"]
            # Its code was mended: a person lets it go on.
            await asyncio.to_thread(mend, cluster.ledger)
            assert await client.resume("killer")
            async with app.executor(cluster.config):
                assert await client.get_handle("killer", str).result(20) == "survived"
            assert await client.list(status=Status.QUARANTINED) == []

    asyncio.run(look())
