"""mypy and pyright infer what users rely on, and flag wrong arguments and forgotten awaits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
FLOWS = PROJECT / "tests" / "typing" / "flows.py"


def expected() -> tuple[dict[int, str], set[int]]:
    """What must be revealed, by line; and the lines that must be flagged."""
    revealed: dict[int, str] = {}
    flagged: set[int] = set()
    for number, line in enumerate(FLOWS.read_text().splitlines(), start=1):
        if found := re.search(r"# reveal: (.+)$", line):
            revealed[number] = found[1]
        elif "# error:" in line:
            flagged.add(number)
    assert len(revealed) > 10
    assert len(flagged) > 10
    return revealed, flagged


def shortened(kind: str) -> str:
    """A type without its modules: mypy says ``builtins.str`` where pyright says ``str``."""
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", kind)


def test_mypy() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-incremental", str(FLOWS)]
    said = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=300)
    revealed: dict[int, str] = {}
    flagged: set[int] = set()
    for line in said.stdout.splitlines():
        found = re.match(r"tests/typing/flows\.py:(\d+): (note|error): (.*)", line)
        assert found, said.stdout + said.stderr
        if kind := re.search(r'Revealed type is "(.*)"', found[3]):
            revealed[int(found[1])] = shortened(kind[1])
        elif found[2] == "error":
            flagged.add(int(found[1]))
    assert (revealed, flagged) == expected(), said.stdout


def test_pyright() -> None:
    # A configuration of its own: the project's leaves out this file, which is full of errors on purpose.
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(FLOWS.parent)]
    command += ["--pythonpath", sys.executable]
    try:
        said = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=300)
        diagnostics = json.loads(said.stdout)["generalDiagnostics"]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        # Not in the extra "test": pyright fetches its program, and Node, on its first run.
        line = "make check && make test ARGS='-k test_pyright'"
        pytest.skip(f"NOT TRIED: pyright can't run here; to try it: {line} ({error!r})")
    revealed: dict[int, str] = {}
    flagged: set[int] = set()
    for diagnostic in diagnostics:
        line = diagnostic["range"]["start"]["line"] + 1
        if kind := re.search(r'Type of ".*" is "(.*)"', diagnostic["message"], re.DOTALL):
            revealed[line] = kind[1]
        elif diagnostic["severity"] == "error":
            flagged.add(line)
    assert (revealed, flagged) == expected(), json.dumps(diagnostics, indent=1)
