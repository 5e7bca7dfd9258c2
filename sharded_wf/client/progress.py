"""How far a map has come: read from its rows, at no cost for the map itself.

A map's own history names the pages that began and what became of those that ended; the histories of the others have an
entry for each item that has ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from sharded_wf.errors import WorkflowNotFound
from sharded_wf.model.history import EntryKind, History
from sharded_wf.model.status import Status
from sharded_wf.workflow.commands import read_message
from sharded_wf.workflow.mapping import MAP_NAME, MAP_TOPIC, MapResult, PageBegun, PageResult, page_id

if TYPE_CHECKING:
    from sharded_wf.client.client import Client

_decode_begun = msgspec.json.Decoder(PageBegun).decode
_decode_page = msgspec.json.Decoder(PageResult).decode
_decode_result = msgspec.json.Decoder(MapResult).decode


class MapProgress(msgspec.Struct, frozen=True):
    """How far a map has come."""

    status: Status
    """The map's own state."""
    read: int
    """How many items were read so far, from a list or from the step that gives them."""
    succeeded: int
    failed: int


async def map_progress(client: Client, map_id: str) -> MapProgress:
    """As ``Client.map_progress``."""
    found = await client.describe(map_id)
    if found is None or found.name.partition("/")[2] != MAP_NAME:
        raise WorkflowNotFound(f"no map has the ID {map_id!r}")
    history = await client.history(map_id)
    begun = {
        page.page: page.count
        for page in (
            _decode_begun(read_message(entry).payload)
            for entry in history.entries
            if entry.kind is EntryKind.MESSAGE and entry.name == MAP_TOPIC
        )
    }
    if found.status is Status.SUCCEEDED and found.output is not None:
        result = _decode_result(found.output)
        return MapProgress(found.status, sum(begun.values()), result.succeeded, result.failed)
    ended = [
        _decode_page(entry.output)
        for entry in history.entries
        if entry.kind is EntryKind.CHILD and entry.output is not None
    ]
    open_pages = sorted(begun.keys() - {page.page for page in ended})
    histories = await asyncio.gather(*(client.history(page_id(map_id, page)) for page in open_pages))
    counts = [_items_of(history) for history in histories]
    return MapProgress(
        found.status,
        sum(begun.values()),
        sum(page.succeeded for page in ended) + sum(succeeded for succeeded, _ in counts),
        sum(len(page.failures) for page in ended) + sum(failed for _, failed in counts),
    )


def _items_of(history: History) -> tuple[int, int]:
    """How many items of an open page have succeeded, and how many have failed."""
    items = [entry for entry in history.entries if entry.kind is EntryKind.CHILD]
    failed = sum(entry.error is not None for entry in items)
    return len(items) - failed, failed
