"""How to test your workflows, on those of ``checkout.py``: on real Postgres, but with days skipped, a mocked step, a
crash where it hurts, and today's code against stored histories.

python -m pytest examples/test_checkout.py     needs sharded-wf[embedded] and pytest; nothing to configure
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from checkout import Approval, app, charge, checkout

from sharded_wf import ClusterConfig, current
from sharded_wf.testing import WorkflowEnvironment, mock_step, replay, write_histories

ADA = Approval(by="Ada", granted=True)
BOUND = checkout.bind("o-1", 4200, ["lamp"])


def test_nobody_approves_in_time(workflow_cluster: ClusterConfig) -> None:
    async def main() -> None:
        async with WorkflowEnvironment(app, workflow_cluster) as env:
            with mock_step(charge, returns="receipt") as bank:
                order = await env.start(BOUND, id="order-1")
                await env.skip(timedelta(hours=23))
                assert not (await order.status()).is_final
                with pytest.raises(TimeoutError):
                    await env.result(order)  # skips what is left of the day
                assert bank.calls == [(("o-1", 4200), {})]

    asyncio.run(main())


def test_the_bank_is_asked_with_the_same_key_after_a_crash(workflow_cluster: ClusterConfig, tmp_path: Path) -> None:
    async def main() -> None:
        async with WorkflowEnvironment(app, workflow_cluster) as env:
            keys: list[str] = []

            def bank(_order: str, _cents: int) -> str:
                keys.append(current().idempotency_key)
                return "receipt"

            with mock_step(charge, bank), env.crash_at(charge, "after"):  # it was paid, and nobody heard of it
                order = await env.start(BOUND, id="order-1", message=("approval", ADA))
                assert (await env.result(order))[:2] == ["receipt", "Ada approved"]
            assert len(keys) == 2
            assert keys[0] == keys[1]
            write_histories(tmp_path / "histories.jsonl", [await env.client.export(order.id)])

    asyncio.run(main())
    assert replay(app, tmp_path / "histories.jsonl") == 1  # in production: `sharded-wf workflow export`
