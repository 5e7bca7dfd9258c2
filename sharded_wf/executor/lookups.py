"""Reading what held workflows need: histories of those that ran before, and messages.

Wishes gather while the last look is under way; the next look asks for all of them, one round trip a shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.executor.held import Hold
from sharded_wf.limits import HISTORIES_PER_LOOK_MAX, LOOKUP_PAUSE_FACTOR, LOOKUP_PAUSE_MAX_SECONDS, WAKES_PER_LOOK_MAX
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.model.workflow import Message
from sharded_wf.postgres.failures import is_transient
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, messages, steps
from sharded_wf.store.claims import Claimed

logger = logging.getLogger("sharded_wf.lookups")

LOOK_AGAIN_SECONDS = 0.05
"""After a wake was found for a workflow that is just being parked."""

Resumed = tuple[Claimed, Hold, History, list[Message]]
"""A workflow that ran before, with all that it needs to go on."""


class Lookups:
    """The one reader of an executor on a shard."""

    def __init__(
        self,
        link: Link,
        clock: Clock,
        schemas: Mapping[int, str],
        moved: Callable[[Exception], object],
        held: Mapping[str, Hold],
        resume: Callable[[list[Resumed]], None],
        offer: Callable[[dict[str, list[Message]]], set[str]],
        woken: Callable[[list[int]], None],
    ) -> None:
        self._link = link
        self._clock = clock
        self._schemas = schemas
        self._moved = moved
        self._held = held
        self._resume = resume
        self._offer = offer
        self._woken = woken
        self._histories: list[tuple[Claimed, Hold]] = []
        self._expecting: dict[str, Hold] = {}
        self._waking: set[int] = set()
        self._cursors: dict[int, str] = {}
        self._wanted = asyncio.Event()
        self._looking = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being read, or wished for."""
        return not self._looking and not self._wanted.is_set()

    def history(self, claimed: Claimed, hold: Hold) -> None:
        """Load the history and the messages of a workflow that ran before, then ``resume`` it."""
        self._histories.append((claimed, hold))
        self._wanted.set()

    def expect(self, hold: Hold) -> None:
        """Look into the mailbox of a held workflow once, then ``offer`` what is there. It is not parked before that."""
        if self._expecting.get(hold.run.id) is not hold:
            self._expecting[hold.run.id] = hold
            hold.looks += 1
        self._wanted.set()

    def wakes(self, slots: Iterable[int]) -> None:
        """Something arrived in these slots: offer it to those we hold, and wake those that are parked."""
        self._waking.update(slot for slot in slots if slot in self._schemas)
        if self._waking:
            self._wanted.set()

    def discard(self) -> None:
        """Forget every wish: the lease is gone."""
        self._histories.clear()
        self._expecting.clear()
        self._waking.clear()

    async def run(self) -> None:
        """Look for ever, until cancelled."""
        self._looking = False
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._looking = True
            histories = self._histories[:HISTORIES_PER_LOOK_MAX]
            del self._histories[:HISTORIES_PER_LOOK_MAX]
            expecting, self._expecting = self._expecting, {}
            waking, self._waking = self._waking, set()
            while True:
                begun = self._clock.monotonic()
                try:
                    await self._look(histories, expecting)
                    histories, expecting = [], {}
                    if waking:
                        await self._wake(sorted(waking))
                    break
                except ConnectionLost:
                    pass
                except psycopg.Error as error:
                    if self._moved(error):
                        # What is held there has been dropped, or is about to be.
                        histories = [wish for wish in histories if self._held.get(wish[0].id) is wish[1]]
                        expecting = {id_: hold for id_, hold in expecting.items() if self._held.get(id_) is hold}
                        waking.intersection_update(self._schemas)
                        continue
                    logger.warning("a look has to be tried again: %s", error)
                    if not is_transient(error):
                        await asyncio.sleep(1.0)
                await self._link.pause()
            self._looking = False
            if self._histories:
                self._wanted.set()
                continue
            # The busier it is, the more wishes gather for one look: a statement for one row costs as much as for ten.
            took = self._clock.monotonic() - begun
            await asyncio.sleep(min(took * LOOKUP_PAUSE_FACTOR, LOOKUP_PAUSE_MAX_SECONDS))

    async def _look(self, histories: list[tuple[Claimed, Hold]], expecting: dict[str, Hold]) -> None:
        by_slot: dict[int, tuple[list[str], set[str]]] = {}
        for claimed, hold in histories:
            ran, mail = by_slot.setdefault(hold.claim.slot, ([], set()))
            ran.append(claimed.id)
            mail.add(claimed.id)
        for id_, hold in expecting.items():
            by_slot.setdefault(hold.claim.slot, ([], set()))[1].add(id_)
        if not by_slot:
            return
        statements: list[Statement] = []
        for slot, (ran, mail) in by_slot.items():
            if ran:
                statements += steps.read_histories(slot_schema(slot), ran)
            statements.append(messages.read_messages(slot_schema(slot), sorted(mail)))
        answers = iter(await self._link.transact(statements))
        found: dict[str, History] = {}
        mailboxes: dict[str, list[Message]] = {}
        for ran, _ in by_slot.values():
            if ran:
                found |= steps.histories_of(next(answers), next(answers))
            _sort_mail(next(answers), mailboxes)
        resumed = [
            (claimed, hold, found.get(claimed.id, EMPTY_HISTORY), mailboxes.pop(claimed.id, []))
            for claimed, hold in histories
        ]
        loop = asyncio.get_running_loop()
        if resumed:
            loop.call_soon(self._resume, resumed)  # runs are stepped from plain callbacks, never inside a task
        if expecting:
            loop.call_soon(self._answer, mailboxes, list(expecting.values()))

    def _answer(self, mailboxes: dict[str, list[Message]], expecting: list[Hold]) -> None:
        self._offer(mailboxes)
        for hold in expecting:
            hold.looks -= 1

    async def _wake(self, slots: list[int]) -> None:
        answers = await self._link.transact(
            [messages.read_wakes(slot_schema(slot), self._cursors.get(slot, ""), WAKES_PER_LOOK_MAX) for slot in slots]
        )
        ours: dict[int, list[messages.Wake]] = {}
        unheld: dict[int, list[str]] = {}
        leaving: set[int] = set()
        for slot, answer in zip(slots, answers, strict=True):
            wakes = messages.wakes_of(answer)
            if len(wakes) < WAKES_PER_LOOK_MAX:
                self._cursors.pop(slot, None)
            else:
                self._cursors[slot] = wakes[-1].workflow_id
                self.wakes([slot])
            for wake in wakes:
                hold = self._held.get(wake.workflow_id)
                if hold is None:
                    if wake.unheld:  # else it concerns another executor, who looks as well
                        unheld.setdefault(slot, []).append(wake.workflow_id)
                elif hold.leaving:
                    leaving.add(slot)
                else:
                    ours.setdefault(slot, []).append(wake)
        if unheld:
            await self._wake_parked(unheld)
        if ours:
            leaving |= await self._offer_ours(ours)
        if leaving:
            asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, self.wakes, sorted(leaving))

    async def _wake_parked(self, unheld: dict[int, list[str]]) -> None:
        now = self._clock.now_us()
        statements: list[Statement] = []
        for slot, ids in unheld.items():
            ids = sorted(set(ids))
            statements.append(messages.wake_parked(slot_schema(slot), ids, now))
            statements.append(messages.forget_idle_wakes(slot_schema(slot), ids))
        answers = await self._link.transact([*statements, leases.notify_if_idle(list(unheld))])
        woken = [slot for slot, answer in zip(unheld, answers[::2], strict=False) if answer.count]
        if woken:
            self._woken(woken)

    async def _offer_ours(self, ours: dict[int, list[messages.Wake]]) -> set[int]:
        """Offer the mail, then forget the wakes of those who took it. One that began to park meanwhile takes nothing;
        its wake must be there still, for the flush that parks it or the next look. Returns the slots of such."""
        answers = await self._link.transact(
            [
                messages.read_messages(slot_schema(slot), sorted({wake.workflow_id for wake in wakes}))
                for slot, wakes in ours.items()
            ]
        )
        mailboxes: dict[str, list[Message]] = {}
        for answer in answers:
            _sort_mail(answer, mailboxes)
        took: set[str] = set()
        if mailboxes:
            handed_out = asyncio.Event()

            def hand_out() -> None:
                try:
                    took.update(self._offer(mailboxes))
                finally:
                    handed_out.set()

            asyncio.get_running_loop().call_soon(hand_out)  # runs are stepped from plain callbacks
            await handed_out.wait()
        done = {
            slot: [wake for wake in wakes if wake.workflow_id in took or wake.workflow_id not in mailboxes]
            for slot, wakes in ours.items()
        }
        statements = [messages.forget_wakes(slot_schema(slot), wakes) for slot, wakes in done.items() if wakes]
        if statements:
            await self._link.transact(statements)
        return {slot for slot, wakes in ours.items() if len(done[slot]) < len(wakes)}


def _sort_mail(answer: Result, mailboxes: dict[str, list[Message]]) -> None:
    for message in messages.messages_of(answer):
        mailboxes.setdefault(message.receiver, []).append(message)
