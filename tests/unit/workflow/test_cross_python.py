"""A history recorded on one Python replays on the others that are installed, in ``.venv-3.1x`` beside the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
VERSIONS = ("3.11", "3.12", "3.13")
SCRIPT = "tests.unit.workflow.portable_programs"


def interpreter(version: str) -> Path | None:
    """A Python of this version that can import the package, or ``None``."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    python = PROJECT / f".venv-{version}" / "bin" / "python"
    return python if python.exists() else None


def launch(python: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONHASHSEED": "random"}
    command = [str(python), "-m", SCRIPT, *arguments]
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(processes: dict[str, subprocess.Popen[str]]) -> dict[str, str]:
    """What each had to say against it; empty if all went well."""
    said = {version: process.communicate(timeout=120)[0] for version, process in processes.items()}
    return {version: text for version, text in said.items() if processes[version].returncode != 0 or text}


def test_histories_replay_on_every_python(tmp_path: Path) -> None:
    pythons = {version: python for version in VERSIONS if (python := interpreter(version)) is not None}
    recording = {v: launch(python, "record", str(tmp_path / f"{v}.json")) for v, python in pythons.items()}
    assert finish(recording) == {}
    files = [str(tmp_path / f"{version}.json") for version in pythons]
    assert finish({v: launch(python, "replay", *files) for v, python in pythons.items()}) == {}
    missing = [version for version in VERSIONS if version not in pythons]
    if missing:
        pytest.skip(f"NOT TRIED on Python {', '.join(missing)}; to try it: .ci/other-pythons .venv")
