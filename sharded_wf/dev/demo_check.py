"""The plain computation that the demo's result is compared with: one process, one loop, no engine.

``python -m sharded_wf.dev.demo_check`` reads the packages as JSON on its standard input and writes the counts of each
as JSON on its standard output. It runs beside the demo, on what the executors leave of the processor.
"""

from __future__ import annotations

import os
import sys

import msgspec

from sharded_wf.dev.demo_flows import Counts, count_file_plainly, total

NICENESS = 5


def count_plainly(packages: dict[str, list[str]]) -> dict[str, Counts]:
    """The counts of every package, one file after another."""
    return {name: total(map(count_file_plainly, paths)) for name, paths in packages.items()}


def main() -> None:
    """Read the packages, count, write the counts."""
    os.nice(NICENESS)
    packages = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, list[str]])
    sys.stdout.buffer.write(msgspec.json.encode(count_plainly(packages)))


if __name__ == "__main__":
    main()
