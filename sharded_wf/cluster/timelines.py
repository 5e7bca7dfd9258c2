"""Which timeline each shard is on, remembered by all the others.

A process that starts anew has seen nothing yet, and an old primary of a shard is the one server that does not know that
it is one. So every shard has a row for every shard, and copies are merged as those of the shard map are: the latest
wins. They are written when a process sees a later timeline than the copies know, and read when one starts, and now and
then by executors, who thereby hear of a failover although their own connections still work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import TypeVar, cast

import psycopg

from sharded_wf.cluster.fanout import Answers, ask_each, ask_one
from sharded_wf.cluster.shard_map import check_identity, read_record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterNotInitialized, OldPrimary
from sharded_wf.limits import STATUS_DEADLINE_SECONDS, TIMELINES_PATIENCE_SECONDS
from sharded_wf.postgres.connect import Connection, read_server
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.timeline import Reading, Timeline, latest, primary_of

_SQL = load("timelines")

logger = logging.getLogger("sharded_wf.timelines")

T = TypeVar("T")

Copy = Mapping[str, Timeline]
"""What one shard has heard of all of them, by name."""


def read_copy(conn: Connection) -> Copy:
    """What this shard has heard; nothing, if its tables are of an earlier version, or this role may not read them."""
    found = conn.execute(_SQL["has_timelines"].on()).fetchone()
    if found is None or not found[0]:
        return {}
    try:
        rows = cast(list[tuple[str, int, int, int]], conn.execute(_SQL["read_timelines"].on()).fetchall())
    except psycopg.errors.InsufficientPrivilege:  # the doctor may run as a role that sees little
        return {}
    return {shard: Timeline(system, number, term) for shard, system, number, term in rows}


def merge_copies(copies: Iterable[Copy]) -> dict[str, Timeline]:
    """The latest of each shard."""
    merged: dict[str, Timeline] = {}
    for copy in copies:
        for shard, timeline in copy.items():
            merged[shard] = latest(merged[shard], timeline) if shard in merged else timeline
    return merged


def ask_primaries(
    shards: Iterable[ShardConfig],
    question: Callable[[ShardConfig, Connection], T],
    *,
    purpose: str,
    deadline_seconds: float,
    patience_seconds: float | None = None,
) -> tuple[Answers[T], dict[str, Copy]]:
    """As ``ask_each``, but without answers of servers that, as other shards have heard, are not the primary any more:
    these shards are asked again, as another host of the DSN may be it; else they say why not. Also returns what the
    shards that answered have heard."""
    known = list(shards)

    def ask(some: Iterable[ShardConfig]) -> Answers[tuple[T, Copy]]:
        return ask_each(
            some, lambda shard, conn: (question(shard, conn), read_copy(conn)), purpose=purpose,
            deadline_seconds=deadline_seconds, patience_seconds=patience_seconds,
        )  # fmt: skip

    answers = ask(known)
    seen = {shard.name: primary_of(shard.dsn).known for shard in known}
    for name, timeline in merge_copies(copy for _, copy in answers.given.values()).items():
        if name in seen:
            primary_of(next(shard.dsn for shard in known if shard.name == name)).learn(timeline)
    late = [
        shard
        for shard in known
        if shard.name in answers.given and primary_of(shard.dsn).refusal(Reading(0, False, seen[shard.name]))
    ]
    if late:
        for shard in late:
            del answers.given[shard.name]
        again = ask(late)
        answers.given.update(again.given)
        answers.failed.update(again.failed)
    given = {name: answer for name, (answer, _) in answers.given.items()}
    return Answers(given, answers.failed), {name: copy for name, (_, copy) in answers.given.items()}


def write_down(shards: Iterable[ShardConfig], copies: Mapping[str, Copy]) -> None:
    """Write what this process has seen to the shards that answered, if their ``copies`` don't know it yet."""
    seen: dict[str, Timeline] = {}
    told = [shard for shard in shards if shard.name in copies]
    for shard in told:
        primary = primary_of(shard.dsn)
        if (own := primary.known) is not None:
            seen[shard.name] = confirmed = Timeline(own.system, own.number, max(own.term, 1))
            primary.learn(confirmed)
    if any(copy.get(name) != timeline for copy in copies.values() for name, timeline in seen.items()):
        spread(told, seen)


def spread(shards: Iterable[ShardConfig], seen: Mapping[str, Timeline]) -> None:
    """Tell these shards what was seen, as far as they can be reached soon: who does not hear it now hears it from the
    next process that starts."""
    rows = [(name, *astuple(timeline)) for name, timeline in sorted(seen.items())]
    columns = [list(column) for column in zip(*rows, strict=True)]

    def tell(_shard: ShardConfig, conn: Connection) -> None:
        if (found := conn.execute(_SQL["has_timelines"].on()).fetchone()) and found[0]:
            conn.execute(_SQL["write_timelines"].on(), columns)

    answers: Answers[None] = ask_each(
        shards, tell, purpose="timelines", deadline_seconds=STATUS_DEADLINE_SECONDS,
        patience_seconds=TIMELINES_PATIENCE_SECONDS,
    )  # fmt: skip
    for name, error in answers.failed.items():
        logger.info("shard %s was not told of timelines: %s", name, error)


def seen_by_this_process(config: ClusterConfig) -> dict[str, Timeline]:
    """What this process knows of the shards."""
    found = {shard.name: primary_of(shard.dsn).known for shard in config.shards}
    return {name: timeline for name, timeline in found.items() if timeline is not None and timeline.term}


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What there is to accept: ``found`` is what the server says of itself (None: it has no timelines), ``heard`` what
    this shard was on, as far as anybody knows."""

    address: str
    found: Timeline | None
    heard: Timeline | None

    @property
    def needed(self) -> bool:
        """Whether the server is refused as it is."""
        if self.found is None or self.heard is None:
            return False
        return self.found.system != self.heard.system or self.found.number < self.heard.number


def look_at_primary(config: ClusterConfig, name: str) -> Acceptance:
    """Which server the DSN of this shard leads to, for whoever is about to accept it. Changes nothing.

    Raises as ``accept_primary`` does."""
    return _on_candidate(config, name, lambda _, found: found)


def accept_primary(config: ClusterConfig, name: str) -> Timeline | None:
    """The server that the DSN of this shard leads to is its primary from now on, whatever was seen before: after a
    restore of a backup, or an upgrade in place. Servers of another system are refused from then on; one of the same
    system on a later timeline can't be told from its own standby that was promoted, so it must be gone. Returns its
    timeline; None if it has none, which needs no acceptance.

    Raises ``ShardUnavailable`` if it can't be reached, ``OldPrimary`` if it is a standby, ``ClusterNotInitialized`` or
    ``ClusterMismatch`` if it is not this shard."""

    def accept(conn: Connection, candidate: Acceptance) -> Timeline | None:
        if candidate.found is None:
            return None
        term = 1 if candidate.heard is None else candidate.heard.term + 1
        accepted = replace(candidate.found, term=term)
        conn.execute(_SQL["write_timelines"].on(), [[value] for value in (name, *astuple(accepted))])
        return accepted

    accepted = _on_candidate(config, name, accept)
    if accepted is not None:
        primary_of(config.shard(name).dsn).learn(accepted)
        spread([one for one in config.shards if one.name != name], {name: accepted})
    return accepted


def _on_candidate(config: ClusterConfig, name: str, question: Callable[[Connection, Acceptance], T]) -> T:
    """``question`` on the server that the shard's DSN leads to, be it refused or not, with what there is to accept."""
    copies = ask_each(
        [one for one in config.shards if one.name != name], lambda _, conn: read_copy(conn), purpose="accept",
        deadline_seconds=STATUS_DEADLINE_SECONDS,
    )  # fmt: skip

    def ask(shard: ShardConfig, conn: Connection) -> T:
        reading = read_server(conn)
        if reading.standby:
            raise OldPrimary(name, "it is a standby: promote it first. Nothing was accepted")
        identity = read_record(conn).identity
        if identity is None:
            raise ClusterNotInitialized(f"shard {name!r} ({shard.address}) holds no cluster")
        check_identity(config, shard, identity)
        heard = merge_copies([*copies.given.values(), read_copy(conn)]).get(name)
        return question(conn, Acceptance(f"{conn.info.host}:{conn.info.port}", reading.timeline, heard))

    return ask_one(config.shard(name), ask, purpose="accept", deadline_seconds=STATUS_DEADLINE_SECONDS, accept_any=True)
