"""Attributes: set at the start and by the workflow, found over all shards, exactly as recorded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from sharded_wf import Status, attr
from tests.support.attribute_flows import staged, sync_staged
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Proxy

ATTRIBUTE_APP = "tests.support.attribute_flows:app"
START = r"insert into wf_\d+\.workflow"


def test_found_over_all_shards_in_pages(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client:
            with_customer = [(f"c-{number}", chain.bind(number)) for number in range(25)]
            await client.start_many(with_customer, attributes={"customer": "c-42", "vip": True})
            when = datetime(2026, 5, 1, tzinfo=UTC)
            for number in range(5):
                await client.start(chain.bind(1), id=f"o-{number}", attributes={"amount": number * 1.5, "at": when})
            found: list[str] = []
            page = await client.list(where=attr("customer") == "c-42", limit=10)
            while page:
                found += [one.id for one in page]
                page = await client.list(where=attr("customer") == "c-42", limit=10, before=page[-1])
            assert sorted(found) == sorted(id_ for id_, _ in with_customer)  # all were created at one moment

            async def ids(**options: Any) -> list[str]:
                return sorted(one.id for one in await client.list(**options))

            assert await ids(where=attr("amount") > 3) == ["o-3", "o-4"]
            assert await ids(where=(attr("amount") >= 3) & (attr("amount") < 6) & (attr("at") == when)) == [
                "o-2",
                "o-3",
            ]
            assert await ids(where=attr("amount") == 3) == ["o-2"]
            assert await ids(where=attr("customer").startswith("c-4") & (attr("vip") == False)) == []  # noqa: E712
            assert await ids(where=attr("amount") >= 0, status=Status.SUCCEEDED) == []
            # A start of an ID that exists changes nothing.
            await client.start(chain.bind(1), id="o-1", attributes={"amount": 99, "more": 1})
            assert await client.attributes("o-1") == {"amount": 1.5, "at": when}

    asyncio.run(go())


def test_a_workflow_changes_its_own(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            one = await client.start(staged.bind(3), id="w", attributes={"stage": -1, "kept": "yes"})
            other = await client.start(sync_staged.bind(2), id="s")
            assert (await one.result(30), await other.result(30)) == (3, 2)
            assert await client.attributes("w") == {"stage": 2, "label": "stage 2", "kept": "yes"}
            assert sorted(found.id for found in await client.list(where=attr("stage") == 2)) == ["s", "w"]
            # What a fork replays is not set again; what it runs is.
            fork = await client.fork("w", from_step=6)
            await fork.result(30)
            assert await client.attributes(fork.id) == {"stage": 2, "label": "stage 2"}

    asyncio.run(go())


def test_a_start_that_is_made_again_sets_nothing_again(cluster: TestCluster) -> None:
    """Its answer was lost, and meanwhile the workflow ran and removed an attribute."""

    async def go() -> None:
        with Proxy(cluster.direct[0]) as proxy:
            async with app.connect(cluster.through(proxy.dsn).config) as client:
                await (await client.start(staged.bind(0), id="warm", queue="nobody's")).describe()
                held = proxy.hold(COMMIT, when="after", within=START)
                starting = asyncio.ensure_future(
                    client.start(staged.bind(0), id="w", attributes={"temporary": True, "kept": 1})
                )
                await asyncio.to_thread(held.wait)
                async with app.executor(cluster.config):
                    await asyncio.to_thread(wait_until, lambda: cluster.statuses()["w"] == 3, "its end")
                proxy.cut_all()
                assert (await starting).created
                assert await client.attributes("w") == {"kept": 1}

    asyncio.run(go())


def test_only_workflows_set_attributes() -> None:
    from sharded_wf import OutsideWorkflow, set_attributes

    with pytest.raises(OutsideWorkflow):
        asyncio.run(set_attributes(stage=1))
    with pytest.raises(OutsideWorkflow):
        set_attributes.blocking(stage=1)
