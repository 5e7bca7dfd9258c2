"""What a history means after the workflow was resumed. Pure.

A resume removes nothing from the history. It adds an entry that declares others void: what the workflow failed of, or
the request that cancelled it. Replay leaves these out, so the code asks for them anew, and they run again.

What was recorded after a void entry is *loose*: some of it ran beside what failed and will be asked for all the same;
some came only of the failure (a clean-up) and may never be asked for again. So a loose entry that nobody asks for in
its turn is put by, and handed over if somebody ever asks.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sharded_wf.model.history import UNASKED, Entry, EntryKind, Resumption

_decode = msgspec.json.Decoder(Resumption).decode


class Resumed(NamedTuple):
    """A resumed history: the entries that count, the places of the loose ones, and the fingerprints of timers that
    begin anew."""

    entries: tuple[Entry, ...]
    loose: frozenset[int]
    restarted: frozenset[int]


def read_resumption(entry: Entry) -> Resumption:
    """What an entry of the kind ``RESUME`` says."""
    return _decode(entry.output or b"{}")


def resumed(entries: tuple[Entry, ...]) -> Resumed | None:
    """What the history means if it was ever resumed, else None."""
    marks = [entry for entry in entries if entry.kind is EntryKind.RESUME]
    if not marks:
        return None
    by_place = {entry.place: entry for entry in entries}
    void: set[int] = set()
    loose: set[int] = set()
    for mark in marks:
        places = [place for place in read_resumption(mark).void if place in by_place]
        void.update(places)
        first = min((by_place[place].ordinal for place in places), default=mark.ordinal)
        loose |= {e.place for e in entries if first < e.ordinal < mark.ordinal and e.kind not in UNASKED}
    timers = [by_place[place] for place in void if by_place[place].kind is EntryKind.TIMER]
    return Resumed(
        tuple(entry for entry in entries if entry.place not in void),
        frozenset(loose - void),
        frozenset(timer.fingerprint for timer in timers),
    )
