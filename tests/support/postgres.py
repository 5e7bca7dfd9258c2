"""Says whether this machine has a Postgres version to test with: ``python -m tests.support.postgres 15``.

The exit code is 0 if so; otherwise a line on standard error says what is skipped, so that nobody thinks it was tested.
"""

from __future__ import annotations

import sys

from sharded_wf.dev.binaries import find_binaries
from sharded_wf.dev.places import server_account
from sharded_wf.errors import EmbeddedPostgresMissing


def main(version: str) -> int:
    try:
        binaries = find_binaries(version, server_account())
    except EmbeddedPostgresMissing as missing:
        sys.stderr.write(f"SKIPPED: the tests on PostgreSQL {version}: {missing}\n")
        return 1
    sys.stderr.write(f"Testing on PostgreSQL {binaries.version} ({binaries.directory})\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
