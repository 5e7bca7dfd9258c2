"""The pytest plugin, in a pytest of its own, as a user's project has it: the tests among ``examples/``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.sampled
def test_the_fixture_is_there_and_each_test_has_a_cluster(tmp_path: Path) -> None:
    for name in ("checkout.py", "test_checkout.py"):
        shutil.copy(PROJECT / "examples" / name, tmp_path)
    entry = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]["sharded_wf"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    listed = subprocess.run([*command, "--fixtures"], cwd=tmp_path, capture_output=True, text=True).stdout
    named = [] if "workflow_cluster" in listed else ["-p", entry]  # an older installation has no entry point yet
    ran = subprocess.run([*command, *named], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout
