"""The way in: what ``connect`` does before there is a cluster."""

from __future__ import annotations

import asyncio
import threading

import pytest

import sharded_wf.application
from sharded_wf import connect
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ConfigError

WAIT_SECONDS = 10.0


def test_embedded_servers_start_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop_goes_on = threading.Event()

    def start_servers(where: str) -> ClusterConfig:
        assert where == "somewhere"
        assert loop_goes_on.wait(WAIT_SECONDS), "the event loop stood still"
        raise ConfigError("no servers here")

    monkeypatch.setattr(sharded_wf.application, "embedded_cluster", start_servers)

    async def go() -> None:
        asyncio.get_running_loop().call_later(0.01, loop_goes_on.set)
        with pytest.raises(ConfigError, match="no servers here"):
            async with connect("embedded:somewhere"):
                pass

    asyncio.run(go())
