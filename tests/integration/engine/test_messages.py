"""I6: messages are received exactly once, in order per sender and topic, across shards, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import itertools

import psycopg
import pytest
from psycopg import sql

from sharded_wf import WorkflowNotFound
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.dev import EmbeddedServer
from sharded_wf.model.workflow import Message
from tests.support import citus
from tests.support.certificate import SUCCEEDED, read_rows
from tests.support.cluster import TestCluster
from tests.support.flows import app, echo, expected_order, inbox, noted_inbox, outbox, parent
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

DELIVER = r"insert into wf_\d+\.message"
COUNT = 8
UNFINISHED = """
    update {s}.workflow set status = 0, output = null, completed_at = null;
    insert into {s}.ready select '~' || capability, queue, priority, now(), id from {s}.workflow;
    insert into {s}.message (workflow_id, topic, sender, seq, sent_at, payload)
        select workflow_id, name, output->>'sender', (output->>'seq')::int, started_at, output->'payload' from {s}.step
"""


def post(cluster: TestCluster) -> tuple[list[str], list[str]]:
    """IDs of two senders and two receivers on each of two shards: (senders, receivers)."""
    senders = [*cluster.ids_on(1, 2, "sender"), *cluster.ids_on(2, 2, "sender")]
    receivers = [*cluster.ids_on(1, 2, "receiver"), *cluster.ids_on(2, 2, "receiver")]
    return senders, receivers


async def start_post(cluster: TestCluster, senders: list[str], receivers: list[str], count: int = COUNT) -> None:
    async with app.connect(cluster.config) as client:
        await client.start_many((id_, noted_inbox.bind(count * len(senders))) for id_ in receivers)
        await client.start_many((id_, outbox.bind(receivers, count)) for id_ in senders)


async def check_post(cluster: TestCluster, senders: list[str], receivers: list[str], count: int = COUNT) -> None:
    async with app.connect(cluster.config) as client:
        async with asyncio.timeout(90):
            found = await asyncio.gather(*(client.get_handle(id_, list[str]).result() for id_ in receivers))
            assert await asyncio.gather(*(client.get_handle(id_, int).result() for id_ in senders)) == [count] * len(
                senders
            )
    for got in found:
        assert expected_order(got, dict.fromkeys(senders, count)) == []
        assert len(got) == count * len(senders)
    await asyncio.to_thread(cluster.certify, [*senders, *receivers])


def test_i6_across_shards(two_shards: TestCluster) -> None:
    senders, receivers = post(two_shards)

    async def go() -> None:
        await start_post(two_shards, senders, receivers)
        async with app.executor(two_shards.config, park_after=0.2), app.executor(two_shards.config, park_after=0.2):
            await check_post(two_shards, senders, receivers)

    asyncio.run(go())


@pytest.mark.parametrize("when", ["before", "after"])
def test_i6_delivered_twice_by_a_cut_connection(two_shards: TestCluster, when: Moment) -> None:
    """The answer to a delivery is lost, so it is made again, when its receiver may have received it already."""
    senders, receivers = post(two_shards)

    async def go() -> None:
        with Proxy(two_shards.direct[0]) as one, Proxy(two_shards.direct[1]) as other:
            behind = two_shards.through(one.dsn, other.dsn)
            rules = [
                proxy.cut(COMMIT, when=when, within=DELIVER, skip=skip)
                for proxy, skip in itertools.product((one, other), (0, 1, 3))
            ]
            await start_post(two_shards, senders, receivers)
            async with app.executor(behind.config, park_after=0.2):
                await check_post(two_shards, senders, receivers)
            assert sum(rule.count for rule in rules) >= 3

    asyncio.run(go())


@pytest.mark.sampled
def test_i6_the_receivers_shard_is_down_for_a_while(cluster_and_far: tuple[TestCluster, EmbeddedServer]) -> None:
    """Senders go on (their messages wait in the outbox), also when their executor is killed; then all arrives."""
    cluster, server = cluster_and_far
    senders = cluster.ids_on(1, 3, "sender")
    receivers = cluster.ids_on(2, 3, "receiver")

    def sent() -> bool:
        here = read_rows(cluster.direct[:1]).workflow
        return [row["status"] for row in here if row["id"] in senders] == [SUCCEEDED] * len(senders)

    with cluster.worker() as first:
        wait_until(lambda: len(cluster.leases(2)) == 1, "a lease on the second shard")

        async def start_receivers() -> None:
            async with app.connect(cluster.config) as client:
                await client.start_many((id_, inbox.bind(COUNT * len(senders))) for id_ in receivers)

        async def start_senders() -> None:
            async with app.connect(cluster.config) as client:
                await client.start_many((id_, outbox.bind(receivers, COUNT)) for id_ in senders)

        asyncio.run(start_receivers())
        server.stop("immediate")
        asyncio.run(start_senders())
        wait_until(sent, "the end of the senders, while the receivers' shard is away", 60, 0.2)
        first.kill()
    assert len(read_rows(cluster.direct[:1]).outbox) == COUNT * len(senders) * len(receivers)
    server.start()
    with cluster.worker():
        asyncio.run(check_post(cluster, senders, receivers))


@pytest.mark.sampled
def test_i6_the_executor_is_killed_between_messages(two_shards: TestCluster) -> None:
    senders, receivers = post(two_shards)
    total = COUNT * len(senders) * len(receivers)
    asyncio.run(start_post(two_shards, senders, receivers))
    with two_shards.worker("--park-after", "0.2") as first, two_shards.worker("--park-after", "0.2") as second:
        wait_until(lambda: len(two_shards.bodies()) >= total / 3, "a third of the messages")
        first.kill()
        with two_shards.worker():
            wait_until(lambda: len(two_shards.bodies()) >= total / 2, "half of the messages")
            second.kill()
            asyncio.run(check_post(two_shards, senders, receivers))


def test_i6_children_on_other_shards_answer_their_parents_once(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            handles = [await client.start(parent.bind(12, 2), id=f"parent-{number}") for number in range(4)]
            async with asyncio.timeout(60):
                assert [await handle.result() for handle in handles] == [24] * 4
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles])

    asyncio.run(go())
    assert len(two_shards.bodies()) == 4 * 12 * 2


@pytest.mark.skipif(bool(citus.COORDINATOR), reason="Citus refuses the SQL that plants what came twice")
def test_i6_what_came_twice_is_gone_when_a_workflow_ends_with_its_replay(cluster: TestCluster) -> None:
    """Its executor was killed before the outcome was recorded, and the message that it received is delivered again."""

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            async with app.executor(cluster.config):
                handle = await client.start(inbox.bind(1), id="w")
                await client.send("w", "mail", "one")
                assert await handle.result(20) == ["one"]
            slot = client.locate("w")[0]
            unfinished = sql.SQL(UNFINISHED).format(s=sql.Identifier(f"wf_{slot:04}"))
            async with await psycopg.AsyncConnection.connect(cluster.direct[0], autocommit=True) as conn:
                await conn.execute(unfinished)
            async with app.executor(cluster.config):
                assert await handle.result(20) == ["one"]
                await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_i6_out_of_order_arrivals_wait(cluster: TestCluster) -> None:
    """What a relay brings late must not be overtaken."""

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.2):
            await client.start(inbox.bind(3), id="r")
            shards = client._shards
            for seq in (3, 2, 2, 1, 3, 1):
                sent_at = SYSTEM_CLOCK.now_us()
                await shards.deliver([Message("r", "mail", "s", seq, b'"s#%d"' % (seq - 1), sent_at)])
            got = await client.get_handle("r", list[str]).result(20)
            assert expected_order(got, {"s": 3}) == []

    asyncio.run(go())


def test_i6_sending_to_nobody_is_an_error(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            with pytest.raises(WorkflowNotFound):
                await client.send("nobody", "mail", "x")
            with pytest.raises(WorkflowNotFound):
                await (await client.start(outbox.bind(["nobody"], 1))).result(10)
            done = await client.start(echo.bind("x"))
            await done.result(10)
            await client.send(done.id, "mail", "late")  # it exists; that it has ended is no error
            await client.start(inbox.bind(1), id="r")
            await client.send("r", "mail", "once", idempotency_key="k")
            await client.send("r", "mail", "once", idempotency_key="k")
            assert await client.get_handle("r", list[str]).result(10) == ["once"]

    asyncio.run(go())


def test_a_message_that_postgres_refuses_fails_its_sender_alone(cluster: TestCluster) -> None:
    """Messages of many workflows share a transaction."""

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(inbox.bind(30), id="r")
            senders = [f"s-{number}" for number in range(30)]
            await client.start_many((id_, outbox.bind(["r"], 1)) for id_ in senders)
            await client.start(outbox.bind(["no\0body"], 1), id="bad")
            async with app.executor(cluster.config), asyncio.timeout(30):
                got = await client.get_handle("r", list[str]).result()
                assert expected_order(got, dict.fromkeys(senders, 1)) == []
                with pytest.raises(Exception, match=r"refused|receiver|NUL|0x00"):
                    await client.get_handle("bad").result()
                await asyncio.to_thread(cluster.certify, [*senders, "r", "bad"])

    asyncio.run(go())


def test_messages_that_arrive_together_are_announced_once(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(inbox.bind(COUNT), id="w")
            await asyncio.gather(*(client.send("w", "mail", number) for number in range(COUNT)))

    asyncio.run(go())
    rows = cluster.rows()
    assert len(rows.message) == COUNT
    assert len(rows.wake) <= 2  # the first goes at once, the others together
