"""A subscription that is billed every month, for ever: it sleeps, continues as new, and outlives a change of its code.

Two years pass in seconds, on real Postgres, because the testing kit skips the sleeps; in production, run a worker.

    python examples/meter.py
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta

from sharded_wf import App, continue_as_new, current, patched
from sharded_wf.dev.cluster import EmbeddedCluster
from sharded_wf.testing import WorkflowEnvironment, replay, write_histories


def make_app(version: str, upgrades: list[str], months: int) -> App:
    """The code as of a version; a real app has one version at a time."""
    app = App("meter", version=version, upgrades=upgrades)

    @app.step
    async def bill(month: int, cents: int) -> str:
        return f"month {month}: {cents} cents"  # the idempotency key differs from run to run, so each month is billed

    @app.workflow
    async def subscription(month: int, paid: list[str]) -> list[str]:
        await asyncio.sleep(timedelta(days=30).total_seconds())
        # Changed in version 2. Whoever slept when it was deployed has not come by here yet, and pays the new price.
        cents = 1200 if version == "2" and patched("new price") else 1000
        paid = [*paid, await bill(month, cents)]
        if month < months:
            continue_as_new(subscription.bind(month + 1, paid))  # the same ID, an empty history
        return [*paid, f"after {current().run} runs"]

    return app


async def main() -> None:
    old, new = make_app("1", [], 24), make_app("2", ["1"], 24)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with EmbeddedCluster(shards=1, slots=2) as cluster, tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        async with WorkflowEnvironment(old, cluster.config, start=start) as env:
            handle = await env.start(old.workflows["meter/subscription"].bind(1, []), id="ada")
            await env.skip(timedelta(days=200))
            write_histories(file.name, [await env.client.export("ada")])
            later = env.now
        print(f"{replay(new, file.name)} history of version 1 replays on version 2")
        async with WorkflowEnvironment(new, cluster.config, start=later) as env:
            paid = await env.result(env.client.get_handle("ada", list[str]))
        for line in (paid[0], paid[5], paid[6], *paid[-2:]):
            print(line)
        assert handle.id == "ada"


if __name__ == "__main__":
    asyncio.run(main())
