"""The worker process's own frame."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sharded_wf import App
from sharded_wf.executor import worker


def test_workflows_do_not_run_while_an_error_of_ours_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be the context of every error that they record, as "During handling of the above exception"."""
    handled: list[object] = []

    async def work(*_: object) -> None:
        handled.append(sys.exc_info()[1])

    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.setattr(worker, "work", work)
    monkeypatch.setattr(worker, "calm_garbage_collector", lambda: None)
    worker.run(cast("Any", None))
    assert handled == [None]


def test_a_worker_says_what_it_runs_and_where(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", version="7")
    parts = [SimpleNamespace(shard=SimpleNamespace(name=name)) for name in ("pg1", "pg2")]
    executor: Any = SimpleNamespace(app=app, parts=parts, queues=["slow"])
    with caplog.at_level(logging.INFO, "sharded_wf.worker"):
        worker.announce(executor)

        @app.workflow
        async def checkout() -> None: ...

        worker.announce(executor)
    texts = [record.getMessage() for record in caplog.records]
    assert "app 'shop' has no workflows" in texts[0]
    assert texts[2] == "runs app 'shop@7' (1 workflow) on pg1, pg2, queues slow; Ctrl-C or SIGTERM drains"
