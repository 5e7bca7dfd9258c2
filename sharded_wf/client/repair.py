"""Repair, as a client asks for it: resume what ended badly, fork a workflow, and both in bulk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.cluster import repair as cluster_repair
from sharded_wf.cluster.shards import ShardSet, SlotSplit
from sharded_wf.errors import IdConflict, LimitExceeded, ResumeRefused, StepNotFound, WorkflowNotFound
from sharded_wf.limits import READ_DEADLINE_SECONDS, REPAIR_PAGE_ROWS, REPAIR_REASONS_MAX, WRITE_DEADLINE_SECONDS
from sharded_wf.model.checks import check_id
from sharded_wf.model.history import EMPTY_HISTORY, Entry, EntryKind, History, Resumption, continuation_of
from sharded_wf.model.status import Status
from sharded_wf.routing import children_of, slot_schema
from sharded_wf.store import leases, outcomes, repair, steps
from sharded_wf.store.repair import Failure
from sharded_wf.workflow.resumption import random_origin


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """Which workflows to repair: those that ended badly and fit everything that is given here."""

    name: str | None = None
    """As ``app/function``."""
    status: Status | None = None
    """``FAILED``, ``CANCELLED`` or ``QUARANTINED``; None: any of them."""
    queue: str | None = None
    error: str | None = None
    """The class of the error, as ``PaymentRefused``: its name without the module."""
    since: datetime | None = None
    """Those that ended after this moment (with a time zone)."""
    until: datetime | None = None
    """Those that had ended by this moment; None: by now."""


class Repaired(msgspec.Struct):
    """What a repair in bulk has done so far."""

    matched: int = 0
    """Workflows that fit the filter."""
    done: int = 0
    """Those that were resumed, or forked; in a dry run, 0."""
    skipped: int = 0
    """Those that can't be repaired this way; in a dry run too."""
    reasons: dict[str, str] = {}
    """Why, by ID: of the first ``limits.REPAIR_REASONS_MAX`` of them."""

    def skip(self, id_: str, reason: str) -> None:
        """Note one that can't be repaired this way."""
        self.skipped += 1
        if len(self.reasons) < REPAIR_REASONS_MAX:
            self.reasons[id_] = reason


Report = Callable[[Repaired], None]

_UNFORKABLE = (StepNotFound, IdConflict, WorkflowNotFound, LimitExceeded)
"""What stands in the way of one fork, and of no other."""


async def resume(shards: ShardSet, id_: str) -> bool:
    """As ``Client.resume``."""
    check_id(id_)
    if await cluster_repair.resume(shards, [id_]):
        return True
    origin, _ = await _existing(shards, id_)
    if origin.undone_from is not None:
        raise ResumeRefused(_undone_text(id_, origin.undone_from))
    return False


async def resume_many(shards: ShardSet, wanted: Failed, *, dry_run: bool, report: Report | None) -> Repaired:
    """As ``Client.resume_many``."""
    total = Repaired()

    async def of(slots: Sequence[int]) -> None:
        async for page in _pages(shards, slots, wanted):
            total.matched += len(page)
            for one in page:
                if one.undone_from is not None:
                    total.skip(one.id, _undone_text(one.id, one.undone_from))
            if not dry_run:
                resumed = await cluster_repair.resume(shards, [one.id for one in page if one.undone_from is None])
                total.done += len(resumed)  # not in one line with the await: other shards count meanwhile
            if report is not None:
                report(total)

    await _of_all(shards, of)
    return total


async def fork(shards: ShardSet, id_: str, from_step: int | str, new_id: str | None) -> tuple[str, bool]:
    """As ``Client.fork``; the new workflow's ID, and whether this call made it."""
    new_id = shards.id_maker()() if new_id is None else new_id
    check_id(new_id)
    origin, history, ordinal = await _forkable(shards, id_, from_step)
    now = shards.clock.now_us()
    entries = _copied(id_, history, ordinal, now)
    answers = await shards.transact(
        new_id,
        lambda slot: [repair.fork(slot_schema(slot), new_id, origin, entries, now), leases.notify_if_idle([slot])],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    if outcomes.ids_of(answers[0]):
        return new_id, True
    _, found = await _existing(shards, new_id)
    if not any(_is_this_fork(entry, id_, ordinal) for entry in found.entries):
        raise IdConflict(f"workflow {new_id!r} exists, and is no fork of {id_!r} from step {ordinal}; use another ID")
    return new_id, False


async def fork_many(
    shards: ShardSet, wanted: Failed, from_step: int | str, suffix: str, *, dry_run: bool, report: Report | None
) -> Repaired:
    """As ``Client.fork_many``."""
    total = Repaired()

    async def of(slots: Sequence[int]) -> None:
        async for page in _pages(shards, slots, wanted):
            total.matched += len(page)
            works = [
                _forkable(shards, one.id, from_step) if dry_run else fork(shards, one.id, from_step, one.id + suffix)
                for one in page
            ]
            answers = await asyncio.gather(*works, return_exceptions=True)
            for one, answer in zip(page, answers, strict=True):
                if isinstance(answer, _UNFORKABLE):
                    total.skip(one.id, str(answer))
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    total.done += answer[1] is True
            if report is not None:
                report(total)

    await _of_all(shards, of)
    return total


async def _of_all(shards: ShardSet, of: Callable[[Sequence[int]], Coroutine[Any, Any, None]]) -> None:
    """The slots of every shard at once; what fails on one is raised when the others are done. Slots are shared out
    once, so one that moves or is split meanwhile is neither missed nor done twice."""
    works = [of(tuple(shard.slots)) for shard in shards.shards.values()]
    for answer in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer


async def _pages(shards: ShardSet, slots: Sequence[int], wanted: Failed) -> AsyncGenerator[list[Failure]]:
    """What fits the filter, in pages of one slot each. What ends badly from now on is not among it, so that a workflow
    which fails again at once is not resumed for ever."""
    until = shards.clock.now_us() if wanted.until is None else _microseconds(wanted.until)
    start = (0 if wanted.since is None else _microseconds(wanted.since), "")
    walks: list[tuple[int, tuple[Microseconds, str]]] = [(slot, start) for slot in reversed(slots)]
    while walks:
        slot, after = walks.pop()
        asked = repair.page_failed(
            slot_schema(slot), after, REPAIR_PAGE_ROWS, wanted.name, wanted.status, wanted.queue, wanted.error,
        )  # fmt: skip
        try:
            answers = await shards.transact_slot(slot, [asked], deadline=READ_DEADLINE_SECONDS)
        except SlotSplit:
            walks += [(half, after) for half in children_of(slot, shards.map.base)]  # each from where this one stood
            continue
        page = sorted(repair.failures_of(answers[0]), key=lambda one: (one.failed_at, one.id))
        if len(page) == REPAIR_PAGE_ROWS and page[-1].failed_at <= until:
            walks.append((slot, (page[-1].failed_at, page[-1].id)))
        if fitting := [one for one in page if one.fits and one.failed_at <= until]:
            yield fitting


def _microseconds(moment: datetime) -> Microseconds:
    return round(moment.timestamp() * 1_000_000)


async def _forkable(shards: ShardSet, id_: str, from_step: int | str) -> tuple[repair.Origin, History, int]:
    """What a fork takes over, and the number of the step that it begins with. Raises ``StepNotFound``,
    ``WorkflowNotFound``."""
    origin, history = await _existing(shards, id_)
    return origin, history, _ordinal_of(id_, history, from_step)


def _undone_text(id_: str, from_step: int) -> str:
    return (
        f"workflow {id_!r} has undone its work (saga), and resumed it would count as done: "
        f"fork it from step {from_step}, where that work began, or start another"
    )


async def _existing(shards: ShardSet, id_: str) -> tuple[repair.Origin, History]:
    check_id(id_)
    answers = await shards.transact(
        id_,
        lambda slot: [
            repair.read_origin(slot_schema(slot), id_), *steps.read_histories(slot_schema(slot), [id_])
        ],
        deadline=READ_DEADLINE_SECONDS,
    )  # fmt: skip
    origin = repair.origin_of(answers[0])
    if origin is None:
        raise WorkflowNotFound(f"no workflow has the ID {id_!r}")
    return origin, steps.histories_of(answers[1], answers[2]).get(id_, EMPTY_HISTORY)


_CHILDREN = (EntryKind.CHILD, EntryKind.START)


def _ordinal_of(id_: str, history: History, from_step: int | str) -> int:
    """The number of the step that a fork begins with: one that is recorded, or the one after the last."""
    if isinstance(from_step, int):
        if 1 <= from_step <= len(history.entries) + 1:
            return max(from_step, _first_of(history))
        raise StepNotFound(
            f"workflow {id_!r} has the steps 1 to {len(history.entries)}, and none of number {from_step}"
        )
    for entry in history.entries:
        if entry.kind is EntryKind.STEP:
            found = entry.name == from_step
        else:  # a child is recorded as app/function; its function is name enough
            found = entry.kind in _CHILDREN and from_step in (entry.name, entry.name.partition("/")[2])
        if found:
            return entry.ordinal
    raise StepNotFound(f"workflow {id_!r} has recorded no step {from_step!r}")


def _first_of(history: History) -> int:
    """The first number that a fork can begin with: what the run before has left, if any, always comes along."""
    return 1 if continuation_of(history) is None else 2


def _copied(id_: str, history: History, ordinal: int, now: Microseconds) -> list[Entry]:
    """The entries before a step, and the mark that says where they come from. A fork from before a resume ends before
    what that resume declared void: it never happened as it stands."""
    places = {entry.place: entry.ordinal for entry in history.entries}
    for entry in history.entries:
        if entry.kind is EntryKind.RESUME and entry.ordinal >= ordinal:
            void = msgspec.json.decode(entry.output or b"{}", type=Resumption).void
            ordinal = min([ordinal, *(places[place] for place in void if place in places)])
    ordinal = max(ordinal, _first_of(history))
    kept = [entry for entry in history.entries if entry.ordinal < ordinal]
    if ordinal == 2 and (before := continuation_of(history)) is not None:
        # Begun from the very start, it is not cancelled, even if the run before was about to be.
        output = msgspec.json.encode(msgspec.structs.replace(before, cancelled=False))
        kept = [msgspec.structs.replace(kept[0], output=output)]
    timeouts = [entry.place for entry in kept if entry.kind is EntryKind.TIMEOUT]  # it has its own time
    origin = random_origin(id_, history)
    mark = msgspec.json.encode(Resumption(void=timeouts, forked_from=id_, from_step=ordinal, random_of=origin))
    last = kept[-1].completed_at if kept else now
    return [*kept, Entry(-ordinal, ordinal, EntryKind.RESUME, "fork", 0, mark, None, last, now)]


def _is_this_fork(entry: Entry, origin: str, ordinal: int) -> bool:
    if entry.kind is not EntryKind.RESUME:
        return False
    said = msgspec.json.decode(entry.output or b"{}", type=Resumption)
    return said.forked_from == origin and said.from_step is not None and said.from_step <= ordinal
