"""Child workflows: started and awaited later, closed with their parent, and one for each of many items.

python examples/children.py                    on private Postgres servers, kept in ./.sharded_wf
python examples/children.py shards.toml        on your own cluster
"""

from __future__ import annotations

import asyncio
import sys

from sharded_wf import App, MapFailed, MapPage, MapResult, map_workflow, start_child

app = App("press")
ITEMS = 300


@app.step
async def render(page: int) -> str:
    if page == 13:
        raise ValueError("page 13 is missing")
    return f"page {page}"


@app.workflow
async def proof(page: int) -> str:
    return await render(page)


@app.workflow
async def watch_the_press() -> None:
    await asyncio.sleep(86_400)


@app.step
async def pages(begin: int | None) -> MapPage[int]:
    """The items, a hundred at a time: from a database, a bucket, a file."""
    first = begin or 0
    following = first + 100
    return MapPage(list(range(first, following)), following if following < ITEMS else None)


@app.workflow
async def issue() -> list[str]:
    watcher = await start_child(watch_the_press.bind(), parent_close="cancel")  # ends with this workflow
    cover = await proof.start(0)  # goes on beside
    said = [f"the watcher is {watcher.id}"]
    try:
        result = await map_workflow(proof, pages, concurrency=50)
    except MapFailed as error:
        said.append(str(error))
        failed: MapResult = error.result
        result = await map_workflow(proof, failed, tolerated_failures=1)  # only what failed, or was not begun
        said.append(f"{failed.succeeded + result.succeeded} of {result.read} pages, {result.failed} given up")
    said.append(f"the cover is {await cover.result()}")
    return said


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    async with app.connect(cluster) as client, app.executor(cluster):
        handle = await client.start(issue.bind(), id="issue-1")
        for line in await handle.result(timeout=60):
            print(line)
        progress = await client.map_progress("issue-1/map-2")
        print(f"the second map: {progress.succeeded} succeeded, {progress.failed} failed")


if __name__ == "__main__":
    asyncio.run(main())
