"""``map_workflow``: one child workflow for each of very many items, so many at once, some of which may fail.

No history and no memory holds all of it. A map is a workflow (``app/$map``) whose history has a few entries for each
*page* of items; a page is a child of it (``app/$map_page``), whose history has one entry for each of its items, without
the item's result; an item is a child of its page. Items come from a list, or page by page from a step, which is asked
where the next page begins. A few pages run at a time.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import mmh3
import msgspec
from msgspec.structs import replace

from sharded_wf.errors import LimitExceeded, MapFailed
from sharded_wf.limits import MAP_ERROR_MAX_CHARACTERS, MAP_PAGE_ITEMS_MAX, MAP_PAGES_AT_ONCE
from sharded_wf.model.workflow import Message, Start
from sharded_wf.serialization.values import ValueCodec, codec_for, encode_json
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.children import child_deadline
from sharded_wf.workflow.commands import NULL, ChildCommand
from sharded_wf.workflow.loop import WorkflowLoop

if TYPE_CHECKING:
    from sharded_wf.workflow.app import App

T = TypeVar("T")

MAP_NAME = "$map"
PAGE_NAME = "$map_page"
MAP_TOPIC = "map.page"
"""On it a page says how many items it has, and where the next one begins. Not a reserved topic: messages on those are
dropped when their receiver has failed, and these are needed if it is resumed."""
_ITEM_SEED = 5
_RECEIVE_BASE = 6
_SEND_BASE = 7


class MapPage(msgspec.Struct, Generic[T], frozen=True):
    """Some items, and where the next page begins: what a step that gives the items of a map returns."""

    items: list[T]
    next: Any = None
    """What the step is to be called with for the next page; ``None``: there is none."""


class MapItem(msgspec.Struct, frozen=True):
    """One item, and its number in the map, from 0."""

    number: int
    item: Any


class MapFailure(msgspec.Struct, frozen=True):
    """An item whose workflow failed or was cancelled."""

    number: int
    """The item's number in the map, from 0."""
    item: Any
    workflow_id: str
    error: str
    """The error's type and text, shortened."""


class MapResult(msgspec.Struct, frozen=True):
    """What became of a map. To run again what failed or was not begun, give it to ``map_workflow`` as its items."""

    map_id: str
    succeeded: int = 0
    failures: list[MapFailure] = []
    """The items that failed, by number."""
    skipped: list[MapItem] = []
    """Items that were read and not begun, because too many had failed."""
    read: int = 0
    """How many items were read: the number of the next one."""
    more: bool = False
    """Whether there are items that were not even read, because too many had failed."""
    next: Any = None
    """Where those begin: what ``source`` is to be called with."""
    source: str | None = None
    """The step that gives the items, if they don't come from a list."""
    tolerated_failures: int | None = 0

    @property
    def failed(self) -> int:
        """How many items failed."""
        return len(self.failures)

    def workflow_id(self, number: int) -> str:
        """The ID of the workflow of an item, from which its result can be had."""
        return item_id(self.map_id, number)

    def check(self) -> MapResult:
        """This result. Raises :class:`MapFailed` if more items failed than were tolerated."""
        if exceeds(self.failed, self.tolerated_failures):
            raise MapFailed(
                f"map {self.map_id!r}: failed items: {self.failed}, tolerated: {self.tolerated_failures};"
                f" the first: {self.failures[0].workflow_id!r}: {self.failures[0].error}",
                self,
            )
        return self


class MapSpec(msgspec.Struct, frozen=True):
    """The input of a map."""

    workflow: str
    concurrency: int
    tolerated_failures: int | None
    items: list[MapItem] = []
    more: bool = False
    source: str | None = None
    begin: Any = None
    read: int = 0
    page_items: int = MAP_PAGE_ITEMS_MAX


class PageSpec(msgspec.Struct, frozen=True):
    """The input of a page."""

    map_id: str
    page: int
    workflow: str
    concurrency: int
    concurrency_alone: int
    tolerated_failures: int | None
    items: list[MapItem] = []
    source: str | None = None
    begin: Any = None
    read: int = 0
    is_last: bool = True


class PageBegun(msgspec.Struct, frozen=True):
    """What a page tells its map as soon as it knows its items."""

    page: int
    count: int
    next: Any = None


class PageResult(msgspec.Struct, frozen=True):
    """What became of a page."""

    page: int
    succeeded: int
    failures: list[MapFailure]
    skipped: list[MapItem]


class _ItemCommand(ChildCommand):
    """The workflow of one item. Its result stays with it; the page only keeps that it succeeded."""

    __slots__ = ()

    def _record(self, output: bytes | None, error: bytes | None, consumed: Message | None) -> None:
        super()._record(None if output is None else NULL, error, consumed)


def exceeds(failed: int, tolerated: int | None) -> bool:
    """Whether so many failures are too many; ``None`` tolerates all."""
    return tolerated is not None and failed > tolerated


def item_id(map_id: str, number: int) -> str:
    """The ID of the workflow of an item."""
    return f"{map_id}/item-{number}"


def page_id(map_id: str, page: int) -> str:
    """The ID of the workflow of a page, from 1."""
    return f"{map_id}/page-{page}"


def _here() -> tuple[AsyncRun, App]:
    loop = _get_running_loop()
    assert isinstance(loop, WorkflowLoop)
    run: AsyncRun = loop.run
    return run, run.definition.app


async def own_child(run: AsyncRun, id_: str, bound: Bound[Any], kind: type[ChildCommand] = ChildCommand) -> Any:
    """Await a child that is the code's own, under a given ID."""
    deadline = child_deadline(run, bound.timeout_seconds)
    start = Start(id_, bound.name, bound.capability, bound.queue, 0, bound.input, None, run.id, deadline=deadline)
    command = kind(run, start, bound.result, run.new_future())
    run.issue(command, mmh3.hash64(id_, _ITEM_SEED)[0])
    try:
        return await command.future
    except asyncio.CancelledError:
        run.give_up_child(command)
        raise


# --- the map


async def run_map(spec: MapSpec) -> MapResult:
    """The workflow ``$map``."""
    return await _Map(spec).run()


class _Map:
    """A map under way."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.host_run, self.app = _here()
        self.chunks = [spec.items[at : at + spec.page_items] for at in range(0, len(spec.items), spec.page_items)]
        self.begin = spec.begin
        self.more = spec.more
        self.read = spec.read
        self.pages = 0
        self.succeeded = 0
        self.failures: list[MapFailure] = []
        self.skipped: list[MapItem] = []
        self.running: set[asyncio.Task[PageResult]] = set()

    async def run(self) -> MapResult:
        try:
            while True:
                while self._may_begin():
                    await self._begin_page()
                if not self.running:
                    break
                await self._collect()
        except (Exception, asyncio.CancelledError):
            for task in self.running:
                task.cancel()
            raise
        left = [item for chunk in self.chunks for item in chunk]
        return MapResult(
            self.host_run.id,
            self.succeeded,
            sorted(self.failures, key=lambda failure: failure.number),
            sorted([*self.skipped, *left], key=lambda item: item.number),
            self.read,
            self.more,
            self.begin if self.more else None,
            self.spec.source,
            self.spec.tolerated_failures,
        )

    def _may_begin(self) -> bool:
        at_once = min(MAP_PAGES_AT_ONCE, self.spec.concurrency)
        return (
            (bool(self.chunks) or self.more)
            and len(self.running) < at_once
            and not exceeds(len(self.failures), self.spec.tolerated_failures)
        )

    async def _begin_page(self) -> None:
        """Begin the next page, and wait until it says where the one after it begins."""
        spec = self.spec
        self.pages += 1
        tolerated = None if spec.tolerated_failures is None else spec.tolerated_failures - len(self.failures)
        page = PageSpec(
            self.host_run.id, self.pages, spec.workflow, max(1, spec.concurrency // MAP_PAGES_AT_ONCE),
            spec.concurrency, tolerated,
        )  # fmt: skip
        if self.chunks:
            items = self.chunks.pop(0)
            page = replace(page, items=items, is_last=not self.chunks and not self.more)
        else:
            page = replace(page, source=spec.source, begin=self.begin, read=self.read)
        bound = self.app.own_workflows[f"{self.app.name}/{PAGE_NAME}"].bind(page)
        task = asyncio.ensure_future(own_child(self.host_run, page_id(self.host_run.id, self.pages), bound))
        self.running.add(task)
        announced = asyncio.ensure_future(self._receive())
        await asyncio.wait([task, announced], return_when=asyncio.FIRST_COMPLETED)
        if not announced.done():
            # It ended, and what it said before that is in the mailbox; unless it failed, which is raised here.
            try:
                task.result()
            except (Exception, asyncio.CancelledError):
                announced.cancel()
                raise
        begun = await announced
        if page.source is not None:
            self.read += begun.count
            self.begin, self.more = begun.next, begun.next is not None

    async def _receive(self) -> PageBegun:
        command = self.host_run.issue_receive(MAP_TOPIC, _RECEIVE_BASE, codec_for(PageBegun))
        try:
            begun: PageBegun = await command.future
            return begun
        except asyncio.CancelledError:
            command.abandon()
            raise

    async def _collect(self) -> None:
        """Wait for a page to end."""
        done, self.running = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
        for result in sorted((task.result() for task in done), key=lambda result: result.page):
            self.succeeded += result.succeeded
            self.failures += result.failures
            self.skipped += result.skipped


# --- one page


async def run_page(spec: PageSpec) -> PageResult:
    """The workflow ``$map_page``."""
    run, app = _here()
    items, following = spec.items, None
    if spec.source is not None:
        source: Any = app.steps[spec.source]
        page: Any = await (source(spec.begin) if source.is_async else source.in_thread(spec.begin))
        if not isinstance(page, MapPage):  # of a step that says not, or otherwise, what it returns
            page = _any_page(spec.source).decode(encode_json(page))
        if len(page.items) > MAP_PAGE_ITEMS_MAX:
            raise LimitExceeded(
                f"step {spec.source!r} gave a page of {len(page.items)} items; the limit is {MAP_PAGE_ITEMS_MAX}"
            )
        items = [MapItem(spec.read + at, item) for at, item in enumerate(page.items)]
        following = page.next
    payload = codec_for(PageBegun).encode(PageBegun(spec.page, len(items), following))
    command = run.issue_send(spec.map_id, MAP_TOPIC, _SEND_BASE, payload)
    await command.future
    alone = spec.page == 1 and following is None and spec.is_last
    return await _run_items(run, app, spec, items, spec.concurrency_alone if alone else spec.concurrency)


def _any_page(source: str) -> ValueCodec[MapPage[Any]]:
    return ValueCodec(MapPage[Any], f"what step {source!r} gave as a page")


async def _run_items(run: AsyncRun, app: App, spec: PageSpec, items: Sequence[MapItem], concurrency: int) -> PageResult:
    workflow = app.workflows[spec.workflow]
    # Whether an item fits the workflow's argument is found where it runs, and is its failure.
    template: Bound[Any] = Bound(
        workflow.name, workflow.capability, workflow.queue, NULL, codec_for(Any), workflow.timeout_seconds
    )
    failures: list[MapFailure] = []
    skipped: list[MapItem] = []
    succeeded = 0
    waiting = iter(items)

    async def work() -> None:
        nonlocal succeeded
        for item in waiting:
            if exceeds(len(failures), spec.tolerated_failures):
                skipped.append(item)
                continue
            id_ = item_id(spec.map_id, item.number)
            try:
                await own_child(run, id_, replace(template, input=b"[%b]" % encode_json(item.item)), _ItemCommand)
            except Exception as error:  # noqa: BLE001 - counted, and told
                text = f"{type(error).__name__}: {error}"[:MAP_ERROR_MAX_CHARACTERS]
                failures.append(MapFailure(item.number, item.item, id_, text))
            else:
                succeeded += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(items))):
            group.create_task(work())
    return PageResult(spec.page, succeeded, failures, skipped)
