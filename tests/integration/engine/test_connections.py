"""Connections that are given up while they are made are closed, too."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from sharded_wf.postgres.session import Session
from tests.support.cluster import TestCluster
from tests.support.proxy import Proxy, Rule


def test_a_session_that_is_cancelled_while_it_connects_leaves_no_connection(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled at any of its round trips, as happens to an executor that is stopped while it starts."""
    open_ones: list[psycopg.AsyncConnection[Any]] = []
    connect = psycopg.AsyncConnection.connect

    async def watched(*args: Any, **kwargs: Any) -> psycopg.AsyncConnection[Any]:
        made = await connect(*args, **kwargs)
        open_ones.append(made)
        return made

    async def go(dsn: str, held: Rule) -> None:
        connecting = asyncio.create_task(Session.connect(dsn, purpose="cancelled"))
        await asyncio.to_thread(held.wait)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        assert [made.closed for made in open_ones] == [True]

    with Proxy(cluster.direct[0]) as proxy:
        monkeypatch.setattr(psycopg.AsyncConnection, "connect", watched)
        asyncio.run(go(proxy.dsn, proxy.hold("set_config", when="after")))
