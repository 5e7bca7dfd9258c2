"""I7 when a move or split is cut off: the coordinator killed at every change of state, a shard killed, the network cut.

Nowhere is a slot live twice, and whoever comes finishes the move, or takes it back.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psycopg
import pytest

from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import MoveRefused, MoveTakenOver, ShardUnavailable
from sharded_wf.reshard.coordinator import Progress
from sharded_wf.reshard.fleet import Wish, driver, new_move, resume_all, undo_all, unfinished_moves
from sharded_wf.reshard.move import Mover
from sharded_wf.reshard.record import Side, State
from tests.integration.reshard.conftest import Apart
from tests.integration.reshard.test_moves import homes, move
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, sleeper
from tests.support.processes import WorkerProcess
from tests.support.proxy import COMMIT, Moment, Proxy

COORDINATOR = """
    import sys, time
    from sharded_wf.cluster.directory import load_map
    from sharded_wf.config import find_config
    from sharded_wf.reshard.fleet import Wish, driver, new_move, unfinished_moves
    from sharded_wf.reshard.record import Side

    path, stop_at, action, target = sys.argv[1:]
    config = find_config(path)
    advance = Side.advance

    def reach(phase):
        print("at", phase, flush=True)
        if phase == stop_at:
            time.sleep(600)

    def advance_and_tell(side, state, *, since):
        advance(side, state, since=since)
        reach("advancing to " + state)

    Side.advance = advance_and_tell
    known = unfinished_moves(config)
    slot = load_map(config).shard_map.slots_of("pg1")[0]
    move = known[0].move if known else new_move(config, Wish(slot, "pg1", target))
    getattr(driver(config, move, lambda progress: reach(progress.phase)), action)()
    print("at the end", flush=True)
"""


def connect(cluster: TestCluster) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(cluster.direct[0], autocommit=True, cursor_factory=psycopg.RawCursor[tuple[object, ...]])


STATES = ("planned", "copying", "following", "verifying", "draining", "retired", "live", "told", "cleaned")
UNDO_STATES = ("advancing to undoing", "undoing", "unmade", "undone")


@dataclass(frozen=True)
class Kind:
    """What can be cut off: slot 0 is moved from pg1 to pg2, or split on pg1. ``switch``: the state whose commit on the
    source is the switch."""

    target: str
    before_live: tuple[str, ...]
    switch: State

    @property
    def wish(self) -> Wish:
        return Wish(0, "pg1", self.target)

    def check_done(self, cluster: TestCluster) -> None:
        """It is done, and nothing is left of how that came to be."""
        lives = homes(cluster)
        if self is MOVE:
            assert (lives[0], 6 in lives, 12 in lives) == ([2], False, False)
        else:
            assert (0 in lives, lives[6], lives[12]) == (False, [1], [1])
        assert (leftovers(cluster), unfinished_moves(cluster.config)) == ([], [])


MOVE = Kind("pg2", (*STATES[:6], "advancing to draining"), "retired")
SPLIT = Kind("pg1", (*STATES[:5], "advancing to copying", "advancing to draining", "advancing to live"), "live")
both_kinds = pytest.mark.parametrize("kind", [MOVE, SPLIT], ids=["move", "split"])


def killed_at(cluster: TestCluster, state: str, action: str = "run", target: str = "pg2") -> None:
    """Run a coordinator in a process of its own and kill it in this state. It moves the first slot of pg1; with pg1
    for a target, it splits it."""
    with WorkerProcess(COORDINATOR, str(cluster.config_file()), state, action, target) as coordinator:
        coordinator.wait_line(f"at {state}")
        coordinator.kill()


def fill(cluster: TestCluster) -> list[str]:
    """Workflows in slot 0 (and others) that have ended, that wait, and that nobody has begun."""
    ids = cluster.ids_on(1, 30)

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            async with app.executor(cluster.config, park_after=0.05):
                for id_ in ids[:10]:
                    await client.start(chain.bind(2), id=id_)
                for id_ in ids[10:20]:
                    await client.start(sleeper.bind(2.0), id=id_)
                for id_ in ids[:10]:
                    await client.get_handle(id_).result(20)
            for id_ in ids[20:]:
                await client.start(chain.bind(1), id=id_)

    asyncio.run(go())
    return ids


def finish(cluster: TestCluster, ids: list[str]) -> None:
    """Everything comes to its end and is sound."""

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            async with asyncio.timeout(60):
                await asyncio.gather(*(client.get_handle(id_).result() for id_ in ids))
            await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())


def leftovers(cluster: TestCluster) -> list[str]:
    """Schemas, triggers and rows of moves that are still there."""
    found: list[str] = []
    for shard in (1, 2):
        found += [
            name for (name,) in cluster.ask("select nspname from pg_namespace where nspname ~ '^wf_.*_.*_'", shard)
        ]
        found += [name for (name,) in cluster.ask("select tgname from pg_trigger where tgname ~ '^move_'", shard)]
        found += [f"move of {slot}" for (slot,) in cluster.ask("select slot from wf_control.move", shard)]
        found += [
            f"{schema} is noted"
            for (schema,) in cluster.ask(
                "select schema_name from wf_control.migration where schema_name ~ '_.*_.*_'", shard
            )
        ]
    return found


def settle(cluster: TestCluster, act: Callable[..., tuple[object, dict[int, Exception]]] = resume_all) -> None:
    """Finish what hangs, or undo it."""
    _, failed = act(cluster.config, [one.move for one in unfinished_moves(cluster.config)])
    assert failed == {}


def chosen(cases: tuple[str, ...], seed: int, *, full: bool, count: int) -> list[str]:
    return list(cases) if full else random.Random(seed).sample(cases, count)


def test_i7_a_coordinator_is_killed_and_the_move_is_finished(two_shards: TestCluster, seed: int, full: bool) -> None:
    ids = fill(two_shards)
    for state in chosen(STATES, seed, full=full, count=3):
        killed_at(two_shards, state)
        lives = homes(two_shards).get(0, [])
        assert lives == ([] if state == "retired" else [2] if state in STATES[6:] else [1])
        settle(two_shards)
        MOVE.check_done(two_shards)
        move(two_shards, (0, "pg1"))
    finish(two_shards, ids)


@both_kinds
def test_i7_a_coordinator_is_killed_and_it_is_undone(
    two_shards: TestCluster, seed: int, full: bool, kind: Kind
) -> None:
    ids = fill(two_shards)
    for state in chosen(kind.before_live, seed, full=full, count=2):
        killed_at(two_shards, state, target=kind.target)
        killed_at(two_shards, random.Random(seed).choice(UNDO_STATES), "undo")
        assert len(homes(two_shards).get(0, [])) <= 1
        settle(two_shards, undo_all)
        assert homes(two_shards).keys() == set(range(6))
        assert (homes(two_shards)[0], leftovers(two_shards)) == ([1], [])
    finish(two_shards, ids)


def test_i7_what_is_live_is_not_undone(two_shards: TestCluster) -> None:
    killed_at(two_shards, "live")
    (hanging,) = unfinished_moves(two_shards.config)
    assert hanging.live
    with pytest.raises(MoveRefused, match="live on 'pg2'"):
        Mover(two_shards.config, hanging.move).undo()
    assert resume_all(two_shards.config, [hanging.move])[1] == {}
    assert (homes(two_shards)[0], leftovers(two_shards)) == ([2], [])


@both_kinds
def test_i7_a_replaced_coordinator_changes_nothing(two_shards: TestCluster, seed: int, kind: Kind) -> None:
    """A coordinator that stands still in any state, while another finishes its work, finds itself replaced."""
    state = random.Random(seed).choice(("following", "verifying", "draining"))

    def overtake(progress: Progress) -> None:
        if progress.phase == state:
            settle(two_shards)

    with pytest.raises((MoveTakenOver, ShardUnavailable)):
        driver(two_shards.config, new_move(two_shards.config, kind.wish), overtake).run()
    kind.check_done(two_shards)


def test_i7_a_token_that_was_replaced_is_worth_nothing(two_shards: TestCluster) -> None:
    planned = new_move(two_shards.config, Wish(0, "pg1", "pg2"))
    with connect(two_shards) as one, connect(two_shards) as another:
        first, second = Side(one, planned, uuid.uuid4()), Side(another, planned, uuid.uuid4())
        assert first.plan("planned")
        assert not second.plan("planned")
        with one.transaction():
            assert first.hold() == "planned"
            another.execute("set lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):  # what is under way comes first
                another.execute("update wf_control.move set runner = 'x'")
        second.take()
        assert second.hold() == "planned"
        for forbidden in (first.hold, first.beat, lambda: first.advance("copying", since=("planned",))):
            with pytest.raises(MoveTakenOver):
                forbidden()
        with pytest.raises(MoveTakenOver):
            second.advance("live", since=("copying",))
        second.remove()


@both_kinds
def test_i7_a_frozen_coordinator_is_shut_out(two_shards: TestCluster, seed: int, kind: Kind) -> None:
    """Also one that froze within the switch, with the slot locked."""
    ids = fill(two_shards)
    state = random.Random(seed).choice(kind.before_live)
    code, path = COORDINATOR.replace("600", "0.5"), str(two_shards.config_file())
    with WorkerProcess(code, path, state, "run", kind.target) as coordinator:
        coordinator.wait_line(f"at {state}")
        coordinator.freeze()
        settle(two_shards)
        kind.check_done(two_shards)
        coordinator.thaw()
        assert coordinator.wait() != 0
        assert "at the end" not in coordinator.output()
    kind.check_done(two_shards)
    finish(two_shards, ids)


@pytest.mark.parametrize(("kind", "second"), [(MOVE, MOVE), (SPLIT, SPLIT), (SPLIT, MOVE)])
def test_i7_two_that_begin_at_once(two_shards: TestCluster, kind: Kind, second: Kind) -> None:
    """A move meets another one of the slot; a split meets another split, or a move."""
    first, late = (new_move(two_shards.config, one.wish) for one in (kind, second))
    assert first.id != late.id
    refused: list[Exception] = []

    def begin_second(progress: Progress) -> None:
        if progress.phase == "planned":
            try:
                driver(two_shards.config, late).run()
            except (MoveRefused, MoveTakenOver) as error:
                refused.append(error)

    driver(two_shards.config, first, begin_second).run()
    assert len(refused) == 1
    kind.check_done(two_shards)


def test_i7_a_shard_is_killed(apart: Apart, seed: int, full: bool) -> None:
    for victim in chosen(("source", "target"), seed, full=full, count=1):
        a_shard_is_killed(*apart("pg1" if victim == "source" else "pg2"), victim, seed)


def a_shard_is_killed(server: EmbeddedServer, cluster: TestCluster, victim: str, seed: int) -> None:
    ids = fill(cluster)
    state = random.Random(seed).choice(["copying", "draining", "retired"] + ["live"] * (victim == "source"))

    def kill(progress: Progress) -> None:
        if progress.phase == state:
            server.kill()

    move_ = new_move(cluster.config, Wish(0, "pg1", "pg2"))
    if victim == "source" and state in ("retired", "live"):  # the target has all; the source is cleaned up later
        assert not Mover(cluster.config, move_, kill).run().cleaned
    else:
        with pytest.raises(ShardUnavailable):
            Mover(cluster.config, move_, kill).run()
    server.start()
    assert len(homes(cluster).get(0, [])) <= 1
    _, failed = resume_all(cluster.config, [one.move for one in unfinished_moves(cluster.config)])
    assert failed == {}
    assert (homes(cluster)[0], leftovers(cluster)) == ([2], [])
    finish(cluster, ids)


def test_i7_a_move_is_undone_while_its_target_is_away(apart: Apart) -> None:
    """The source takes its slot back at once; what is left on the target is seen, refused to be resumed, and
    removed."""
    server, cluster = apart("pg2")
    ids = fill(cluster)
    killed_at(cluster, "following")
    server.kill()
    (hanging,) = unfinished_moves(cluster.config)
    assert hanging.unseen == ("pg2",)
    Mover(cluster.config, hanging.move).undo()
    server.start()
    assert homes(cluster)[0] == [1]
    (left,) = unfinished_moves(cluster.config)
    with pytest.raises(MoveRefused, match="was undone while that shard was away"):
        Mover(cluster.config, left.move).run()
    Mover(cluster.config, left.move).undo()
    assert (homes(cluster)[0], leftovers(cluster)) == ([1], [])
    move(cluster, (0, "pg2"))
    finish(cluster, ids)


@both_kinds
@pytest.mark.parametrize("when", ["before", "after"])
def test_i7_the_network_is_cut_at_the_switch(
    two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch, when: Moment, kind: Kind
) -> None:
    """The answer to the commit that retires the slot on its source is lost (in a split, the same one makes its halves
    live): the next coordinator finds out what happened."""
    ids = fill(two_shards)
    advance = Side.advance
    with Proxy(two_shards.direct[0]) as proxy:
        through = two_shards.through(proxy.dsn)

        def advance_and_cut(side: Side, state: State, *, since: Iterable[State]) -> None:
            advance(side, state, since=since)
            if state == kind.switch:
                proxy.cut(COMMIT, when=when)

        with monkeypatch.context() as patch:
            patch.setattr(Side, "advance", advance_and_cut)
            with pytest.raises(ShardUnavailable, match="pg1"):
                driver(through.config, new_move(two_shards.config, kind.wish)).run()
    (hanging,) = unfinished_moves(two_shards.config)
    assert hanging.move.state == ("draining" if when == "before" else kind.switch)
    assert (0 in homes(two_shards)) == (when == "before")
    settle(two_shards)
    kind.check_done(two_shards)
    finish(two_shards, ids)
