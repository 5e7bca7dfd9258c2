"""Where to claim next. Pure: lanes that have work, how full they were last time, and from which moment on to look.

Claims walk a queue's index from its old end, where the entries of rows claimed long ago lie dead until vacuum removes
them, which an old transaction can prevent for hours. So a claim starts at a low-water mark, somewhat before what was
claimed last, and looks at the whole lane only when the lane seems empty, and not often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.limits import (
    CLAIM_BATCH_MAX_WORKFLOWS,
    CLAIM_FIRST_BESIDE_WORKFLOWS,
    CLAIM_FIRST_WORKFLOWS,
    CLAIM_LANES_MAX,
    MARK_MARGIN_SECONDS,
    RESCAN_BUSY_SECONDS,
    RESCAN_EMPTY_SECONDS,
)
from sharded_wf.store.claims import RAN_BEFORE, START_OF_TIME, SUSPECT, Lane


class Pick:
    """One lane of one slot to claim from, with a limit."""

    __slots__ = ("lane", "limit", "mark", "slot")

    def __init__(self, slot: int, lane: Lane, limit: int, mark: Microseconds) -> None:
        self.slot = slot
        self.lane = lane
        self.limit = limit
        self.mark = mark


_Hot = deque[tuple[int, Lane]]


class _LaneState:
    __slots__ = ("hot", "last_count", "mark", "rescanned_at")

    def __init__(self) -> None:
        self.hot = False
        self.last_count = 0
        self.mark = START_OF_TIME
        self.rescanned_at = float("-inf")


class Intake:
    """What one executor knows of the queues of one shard."""

    def __init__(self, capabilities: Collection[str], queues: Iterable[str] | None, *, isolated: bool = False) -> None:
        self._marks = (SUSPECT,) if isolated else ("", RAN_BEFORE)
        self._capabilities = self.lanes_of(capabilities)
        self._suspects = {SUSPECT + capability for capability in capabilities}
        self._queues = None if queues is None else frozenset(queues)
        self._known: set[Lane] = set()
        self._states: dict[tuple[int, Lane], _LaneState] = {}
        self._fresh: _Hot = deque()
        self._again: _Hot = deque()
        self._odd = False
        self._out = 0
        self._left: set[int] = set()

    def lanes_of(self, capabilities: Collection[str]) -> frozenset[str]:
        """Capabilities as their lanes have them that this executor takes from."""
        return frozenset(mark + capability for capability in capabilities for mark in self._marks)

    def serves(self, lane: Lane) -> bool:
        """Whether this executor can run what is in the lane."""
        return lane.capability in self._capabilities and (self._queues is None or lane.queue in self._queues)

    def is_suspect(self, lane: Lane) -> bool:
        """Whether the lane holds suspects of ours, for an isolated executor."""
        return lane.capability in self._suspects

    def found(self, slot: int, lanes: Iterable[Lane]) -> bool:
        """A look at the slot found these lanes with work. Returns whether any is for us."""
        any_for_us = False
        for lane in lanes:
            if self.serves(lane):
                any_for_us = True
                self._known.add(lane)
                self._heat(slot, lane)
        return any_for_us

    def notified(self, slots: Iterable[int]) -> bool:
        """Work was announced in these slots: try every lane that is known. Returns whether any is."""
        for slot in slots:
            for lane in self._known:
                self._heat(slot, lane)
        return bool(self._known)

    def _heat(self, slot: int, lane: Lane) -> None:
        key = (slot, lane)
        state = self._states.get(key)
        if state is None:
            if slot in self._left:
                return
            state = self._states[key] = _LaneState()
        if not state.hot:
            state.hot = True
            self._hot(lane).append(key)

    def _hot(self, lane: Lane) -> _Hot:
        return self._again if lane.capability.startswith((RAN_BEFORE, SUSPECT)) else self._fresh

    @property
    def has_work(self) -> bool:
        """Whether some lane is believed to have work."""
        return bool(self._fresh or self._again)

    @property
    def is_busy(self) -> bool:
        """Whether there is work, or a claim is under way that may find more."""
        return self.has_work or self._out > 0

    @property
    def has_work_again(self) -> bool:
        """Whether some lane of work that ran before is believed to hold more than the claims under way take."""
        return bool(self._again)

    def forget(self) -> None:
        """Know nothing any more (a new lease begins)."""
        self._out = 0
        self._states.clear()
        self._fresh.clear()
        self._again.clear()

    def leave_slot(self, slot: int) -> None:
        """The slot is not served any more. If it comes back everything in it is new: also what is older than any
        mark."""
        self._left.add(slot)
        for key in [key for key in self._states if key[0] == slot]:
            if self._states.pop(key).hot:
                self._hot(key[1]).remove(key)

    def serve_slot(self, slot: int) -> None:
        """The slot is served from now on."""
        self._left.discard(slot)

    def picks(self, room: int, now: float) -> list[Pick]:
        """Lanes for one claiming transaction, at most ``room`` workflows in all: each in turn, but of one slot and
        queue the lower priority number first. New work has half of the room and of the lanes if it wants them, however
        much of what ran before waits beside it. Picked lanes are cold until ``came`` tells what they gave."""
        best: dict[tuple[int, str], int] = {}
        for slot, lane in chain(self._fresh, self._again):
            key = (slot, lane.queue)
            best[key] = min(best.get(key, lane.priority), lane.priority)
        if not (self._fresh and self._again):
            return self._picks(self._fresh or self._again, room, CLAIM_LANES_MAX, CLAIM_FIRST_WORKFLOWS, best, now)
        self._odd = not self._odd  # of one place, too, each has its turn
        half = (room + self._odd) // 2
        chosen = self._picks(self._fresh, half, CLAIM_LANES_MAX // 2, CLAIM_FIRST_BESIDE_WORKFLOWS, best, now)
        room -= sum(pick.limit for pick in chosen)
        lanes = CLAIM_LANES_MAX - len(chosen)
        return chosen + self._picks(self._again, room, lanes, CLAIM_FIRST_WORKFLOWS, best, now)

    def _picks(
        self, hot: _Hot, room: int, lanes: int, first: int, best: Mapping[tuple[int, str], int], now: float
    ) -> list[Pick]:
        chosen: list[Pick] = []
        for _ in range(len(hot)):
            if room <= 0 or len(chosen) >= lanes:
                break
            slot, lane = hot.popleft()
            if lane.priority > best[slot, lane.queue]:
                hot.append((slot, lane))
                continue
            state = self._states[slot, lane]
            limit = min(room, CLAIM_BATCH_MAX_WORKFLOWS, max(first, 2 * state.last_count))
            rescan = RESCAN_BUSY_SECONDS if state.last_count else RESCAN_EMPTY_SECONDS
            mark = state.mark
            if now - state.rescanned_at >= rescan:
                state.rescanned_at = now
                mark = START_OF_TIME
            chosen.append(Pick(slot, lane, limit, mark))
            state.hot = False
            self._out += 1
            room -= limit
        return chosen

    def came(self, pick: Pick, count: int, last_enqueued_at: Microseconds | None) -> None:
        """What a pick gave. A lane that gave all it was asked for is hot again."""
        self._out -= 1
        state = self._states.get((pick.slot, pick.lane))
        if state is None:
            return  # the slot has been left meanwhile
        state.last_count = count
        if last_enqueued_at is not None:
            state.mark = max(state.mark, last_enqueued_at - int(MARK_MARGIN_SECONDS * SECOND_US))
        if count >= pick.limit:
            self._heat(pick.slot, pick.lane)

    def failed(self, picks: Iterable[Pick]) -> None:
        """The claim did not happen: the lanes are as hot as before."""
        for pick in picks:
            self._out -= 1
            self._heat(pick.slot, pick.lane)
