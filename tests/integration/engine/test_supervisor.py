"""``sharded-wf worker --processes N``: children are replaced when they die, and end when their supervisor does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import TestCluster
from tests.support.processes import wait_until


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def supervisor(cluster: TestCluster) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "sharded_wf", "worker", "tests.support.flows:app", "--processes", "2"]
    with subprocess.Popen([*command, "--cluster", str(cluster.config_file())]) as process:
        wait_until(lambda: len(children_of(process.pid)) == 2, "two children")
        yield process
        process.kill()


@pytest.mark.sampled
def test_a_child_that_dies_is_replaced(supervisor: subprocess.Popen[bytes]) -> None:
    first, second = children_of(supervisor.pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(set(children_of(supervisor.pid)) - {first, second}) == 1, "a new child")
    supervisor.terminate()
    assert supervisor.wait(30) == 0


def test_children_end_when_their_supervisor_is_killed(supervisor: subprocess.Popen[bytes]) -> None:
    children = children_of(supervisor.pid)
    supervisor.kill()
    wait_until(lambda: not any(map(is_alive, children)), "the end of the children")
