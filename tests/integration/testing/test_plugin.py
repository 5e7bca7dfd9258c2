"""The pytest plugin, in a pytest of its own, as a user's project has it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
USERS_TEST = """
import asyncio
import pytest

from sharded_wf import App
from sharded_wf.testing import WorkflowEnvironment

app = App("users")

@app.workflow
async def nap() -> str:
    await asyncio.sleep(1e6)
    return "rested"

def test_nap(workflow_cluster):
    async def main():
        async with WorkflowEnvironment(app, workflow_cluster) as env:
            assert await env.run(nap.bind(), id="w") == "rested"
    asyncio.run(main())

test_again = test_nap  # the same ID, in a cluster of its own
"""


@pytest.mark.sampled
def test_the_fixture_is_there_and_each_test_has_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    entry = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]["sharded_wf"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    listed = subprocess.run([*command, "--fixtures"], cwd=tmp_path, capture_output=True, text=True).stdout
    named = [] if "workflow_cluster" in listed else ["-p", entry]  # an older installation has no entry point yet
    ran = subprocess.run([*command, *named], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout
