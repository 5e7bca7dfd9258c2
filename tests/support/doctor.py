"""What the tests of the doctor share: ask for one check, and do what its findings say, in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psycopg

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.config import ClusterConfig
from sharded_wf.dev.binaries import find_binaries
from sharded_wf.dev.places import server_account
from sharded_wf.doctor.examine import examine
from sharded_wf.doctor.finding import Finding
from sharded_wf.postgres.queries import load
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until


def findings(
    config: ClusterConfig, check: str, *, shards: Sequence[str] = (), clock: Clock = SYSTEM_CLOCK
) -> list[Finding]:
    """What one check found."""
    return [one for one in examine(config, shards, clock=clock).findings if one.check == check]


def the_finding(config: ClusterConfig, check: str, *, clock: Clock = SYSTEM_CLOCK) -> Finding:
    """The one finding of a check; it must be the only one of that check. Statistics come with a delay: waits."""
    found: list[Finding] = []

    def there() -> bool:
        found[:] = findings(config, check, clock=clock)
        return bool(found)

    wait_until(there, f"a finding of {check}", interval=0.2)
    assert len(found) == 1, found
    return found[0]


def run(command: str, directory: Path | None = None) -> str:
    """A command that a finding names, as pasted into a shell; what it printed."""
    programs = [
        str(Path(sys.executable).parent),
        str(Path(find_binaries("18", server_account()).program("psql")).parent),
    ]
    path = os.pathsep.join([*programs, os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command], cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "ERROR" not in done.stderr, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def mend(finding: Finding, directory: Path | None = None) -> None:
    """Do what the finding says."""
    for command in finding.mend:
        run(command, directory)


def gone(config: ClusterConfig, check: str) -> None:
    """The check finds nothing any more."""
    wait_until(lambda: not findings(config, check), f"the end of all findings of {check}", interval=0.2)


def is_mended(config: ClusterConfig, check: str) -> Finding:
    """There is one finding of this check; doing what it says is the end of it."""
    finding = the_finding(config, check)
    mend(finding)
    gone(config, check)
    return finding


def config_of(cluster: TestCluster) -> ClusterConfig:
    """Read from a file, so that commands can name it."""
    return ClusterConfig.from_file(cluster.config_file())


def do(cluster: TestCluster, *statements: str, shard: int = 1) -> None:
    """Make a condition, statement by statement."""
    with psycopg.connect(cluster.direct[shard - 1], autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def rows_known(cluster: TestCluster) -> int:
    """How many workflows the statistics say the largest slot has."""
    query = load("doctor")["estimate_workflows"]
    with psycopg.connect(cluster.direct[0], cursor_factory=psycopg.RawCursor) as conn:
        return max(int(row[1]) for row in conn.execute(query.on(), (["wf_0002"],)).fetchall())
