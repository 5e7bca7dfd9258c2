"""Two releases on one cluster at once: the one before on the new tables, the next one beside it, and the end of the
old one. The next release is a copy of this tree with further migrations: see ``tests/support/releases.py``."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial

import pytest

from sharded_wf.errors import MoveRefused, SchemaOutOfDate
from sharded_wf.reshard.fleet import check_wishes
from tests.integration.reshard.test_moves import homes
from tests.support.cluster import RUN_WORKER, TestCluster
from tests.support.doctor import findings, the_finding
from tests.support.flows import LEDGER_VARIABLE, app, echo
from tests.support.load import RUN, STARTED, finish
from tests.support.processes import WorkerProcess, wait_until
from tests.support.releases import VERSION, Release

OURS = Release()
TAKEOVER_SECONDS = 60.0
"""For a client that waits for what a killed worker held; on a busy machine."""


def worker(release: Release, cluster: TestCluster, *, ready: bool = True) -> WorkerProcess:
    arguments = ("worker", "tests.support.flows:app", "--cluster", str(cluster.config_file()), "--park-after", "0.2")
    started = release.run(RUN_WORKER, *arguments, environment={LEDGER_VARIABLE: cluster.ledger})
    if ready:
        started.wait_line("runs app")
    return started


def load(release: Release, cluster: TestCluster, prefix: str) -> WorkerProcess:
    started = release.run(RUN, str(cluster.config_file()), prefix)
    started.wait_line(STARTED)
    return started


def migrate(release: Release, cluster: TestCluster, *options: str) -> tuple[int, str]:
    with release.cli("shards", "migrate", "--cluster", str(cluster.config_file()), *options) as command:
        return command.wait(), command.output()


def who_ran(cluster: TestCluster, prefix: str) -> set[int]:
    """The processes that ran steps of the workflows with this prefix."""
    return {pid for workflow, _, _, _, pid in cluster.bodies() if workflow.startswith(prefix)}


def both_ran_both(cluster: TestCluster, *workers: WorkerProcess) -> None:
    """Each of these processes runs steps of what clients of both releases start."""
    pids = {one.pid for one in workers}
    for prefix in ("old", "new"):
        wait_until(partial(ran, cluster, prefix, pids), f"{pids} run what {prefix} clients start", TAKEOVER_SECONDS)


def ran(cluster: TestCluster, prefix: str, pids: set[int]) -> bool:
    return pids <= who_ran(cluster, prefix)


@pytest.mark.sampled
def test_two_releases_on_one_cluster(two_shards: TestCluster, next_release: Release, full: bool) -> None:
    with ExitStack() as processes:

        def begin(process: WorkerProcess) -> WorkerProcess:
            return processes.enter_context(process)

        old, early = begin(worker(OURS, two_shards)), begin(worker(next_release, two_shards, ready=False))
        old_load = begin(load(OURS, two_shards, "old"))
        refused(early, "the tables are older than this version needs", "run: sharded-wf shards migrate")
        assert migrate(next_release, two_shards, "--pre")[0] == 0
        with next_release.cli("shards", "status", "-c", str(two_shards.config_file())) as status:
            assert status.wait() == 0
            assert "migrations to apply, once every process runs this version" in status.output()
        new, new_load = begin(worker(next_release, two_shards)), begin(load(next_release, two_shards, "new"))
        both_ran_both(two_shards, old, new)
        assert f"newest is {VERSION}" in the_finding(two_shards.config, "executor-versions").what
        a_slot_moves_between_pre_and_post(two_shards, next_release)
        for killed in ("old", "new") if full else ():
            (old if killed == "old" else new).kill()  # the other release takes over what it held
            again = begin(worker(OURS if killed == "old" else next_release, two_shards))
            old, new = (again, new) if killed == "old" else (old, again)
            both_ran_both(two_shards, old, new)
        code, said = migrate(next_release, two_shards, "--yes")
        assert f":{old.pid} (0.1.0), which runs a version that does not know it; stop it" in said
        assert code == 1
        ids = finish(old_load)
        old.freeze()
        asyncio.run(old_clients_end(two_shards, next_release))
        old.thaw()  # it is shut out, and writes nothing
        late = begin(worker(OURS, two_shards, ready=False))
        old.wait_lines("not served any more: the tables are newer than this version can use", 2)
        new_load.wait_line(STARTED)
        ids += finish(new_load)
        assert all("upgrade sharded-wf" in one.what for one in findings(two_shards.config, "migrations"))
        refused(late, "the tables are newer than this version can use", "upgrade sharded-wf")
        two_shards.certify(ids, zombies=[old.pid])
        wait_until(
            lambda: not any(name.endswith(f":{old.pid}") for at in (1, 2) for name in two_shards.leases(at).values()),
            "that the old executor has no lease",
        )
        old.terminate()
        assert old.wait() == 0
    assert {row["region"] for row in two_shards.rows().workflow} == {"before", "after"}


def refused(process: WorkerProcess, *words: str) -> None:
    """It did not start, and said why."""
    assert process.wait() != 0
    assert all(word in process.output() for word in words), process.output()


def a_slot_moves_between_pre_and_post(cluster: TestCluster, release: Release) -> None:
    with pytest.raises(MoveRefused, match=r"does not know .*with the newer sharded-wf"):
        check_wishes(cluster.config, [(0, "pg2")])
    with release.cli("shards", "move", "0", "--to", "pg2", "--yes", "-c", str(cluster.config_file())) as move:
        assert move.wait() == 0, move.output()
    assert homes(cluster)[0] == [2]


async def old_clients_end(cluster: TestCluster, release: Release) -> None:
    """The old executor is frozen, and shut out. A client has no lease; one that was forgotten is told what to do."""
    async with app.connect(cluster.config) as client:
        handle = await client.start(echo.bind("a"), id="forgotten")
        assert await handle.result(20) == "a"
        code, said = await asyncio.to_thread(migrate, release, cluster, "--yes", "--force")
        assert (code, "post_region" in said) == (0, True), said
        with pytest.raises(SchemaOutOfDate, match=r"newer than this version .* upgrade sharded-wf"):
            await client.start(echo.bind("b"))
