"""The command line in a process that must not outlive the one that started it.

``sharded-wf dev`` and the demo run ``sharded-wf worker`` in processes of their own. If the starter is killed, no signal
tells them; but the pipe to their standard input ends. ``python -m sharded_wf.dev.child worker ...`` is ``sharded-wf
worker ...``, with a thread that waits for that end.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def start_child(
    arguments: Sequence[str], *, output: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``sharded-wf ARGUMENTS`` as a child that ends with us. ``output`` takes what it prints on stdout and stderr
    (None: ours do); ``environment`` is set on top of ours. It has a session of its own, so that Ctrl-C reaches it
    through us only."""
    return subprocess.Popen(
        [sys.executable, "-m", "sharded_wf.dev.child", *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        cwd=Path.cwd(),
        start_new_session=True,
    )


def _end_with_starter() -> None:
    while os.read(0, 512):
        pass
    os._exit(1)  # not draining: the embedded servers are going, too


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, name="starter", daemon=True).start()
    runpy.run_module("sharded_wf", run_name="__main__")
