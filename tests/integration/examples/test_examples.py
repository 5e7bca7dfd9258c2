"""The programs that people copy: the README's first screen and ``examples/``, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]


def run(program: Path, directory: Path) -> list[str]:
    """Run it as a user would, in an empty directory; its lines."""
    environment = {name: value for name, value in os.environ.items() if name != "SHARDED_WF_CONFIG"}
    ran = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(program)],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return ran.stdout.splitlines()


def test_the_readme_s_first_program(tmp_path: Path) -> None:
    readme = (PROJECT / "README.md").read_text()
    program = tmp_path / "shop.py"
    program.write_text(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0])
    assert readme[: readme.index("```python")].count("\n") < 10, "it begins on the first screen"
    expected = ["['charged 4200 cents for o-1', 'packed lamp', 'packed shade']"]
    assert run(program, tmp_path) == expected
    assert run(program, tmp_path) == expected  # the second time it is looked up


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("checkout", [r"receipt for o-1, 42\.00 €, key .*", "Ada approved", "lamp is on its way .*", "shade is .*"]),
        (
            "waiting",
            [
                "the lamp is in Lyon",
                "the neighbour knows: the lamp is in Lyon",
                "the lamp is in Lyon, unpacked in 2 attempts under a number of version 4",
                "its time was over",
            ],
        ),
        (
            "messages",
            [
                "bought for 600 cents",
                "sold for 600 cents",
                r"\['with the start', 'sent twice, received once', 'the last'\]",
                "an error, and recorded: no workflow 'nobody' .*",
            ],
        ),
        (
            "repair",
            [
                r"3 orders failed: the warehouse is closed",
                "3 would be resumed",
                "3 resumed",
                "all are shipped, each charged once",
                "a fork of o-1 ships once more, and charges nothing",
            ],
        ),
        (
            "cancel",
            [
                "paused: nothing is baked",
                "unpaused: 1 cake is baked",
                "cancelled: the oven is off",
                "terminated: the oven stays on",
            ],
        ),
        ("attributes", [r"7 orders of Ada, in pages of 3", r"2 of them cost 25 and more", "all are shipped"]),
        (
            "children",
            [
                "the watcher is issue-1/watch_the_press-1",
                r"map 'issue-1/map-1': failed items: 1, tolerated: 0; .*page 13 is missing",
                "299 of 300 pages, 1 given up",
                "the cover is page 0",
                r"the second map: \d+ succeeded, 1 failed",
            ],
        ),
        ("trip", ["with fast air, flight, hotel", "cancelled hotel", "cancelled flight", "no car left"]),
        ("fanout", [r"1000 workflows started and finished in [\d.]+ s", "the longest sequence .* begins with 871"]),
        (
            "meter",
            [
                "1 history of version 1 .*",
                *[f"month {m}: 1000 cents" for m in (1, 6)],
                *[f"month {m}: 1200 cents" for m in (7, 24)],
                "after 24 runs",
            ],
        ),
        (
            "plain",
            [
                "linen, 2 attempts, bed 1 and 9 more",
                "clean: True",
                r"no band \['book hall', 'book bar', 'undo book bar', 'undo book hall'\]",
                "Ada stayed 3 nights",
                "found by night: 1",
                *["Ada arrives, lights out; cancelled"] * 2,
                "no linen today",
                "linen delivered; the van left 1 time",
            ],
        ),
        ("transfer", ["before the commit: None", "4200 cents from ada to bob, 5800 left", "ada has too little; .*"]),
    ],
)
def test_an_example(tmp_path: Path, name: str, lines: list[str]) -> None:
    said = run(PROJECT / "examples" / f"{name}.py", tmp_path)
    assert len(said) == len(lines)
    for line, pattern in zip(said, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_every_example_is_run() -> None:
    assert {path.stem for path in (PROJECT / "examples").glob("*.py")} == {
        "attributes",
        "cancel",
        "checkout",
        "children",
        "fanout",
        "messages",
        "meter",
        "plain",
        "repair",
        "test_checkout",  # by the tests of the plugin
        "transfer",
        "trip",
        "waiting",
    }
