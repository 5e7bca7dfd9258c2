"""An executor that starts anew whenever its source changes, for ``sharded-wf dev``.

Whole processes are replaced, not modules: reloading modules in place leaves old classes behind, and an executor is made
to be ended at any moment anyway. What was unfinished goes on in the new one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sharded_wf.dev.child import start_child

LOOK_EVERY_SECONDS = 0.4
DRAIN_SECONDS = 2.0
"""Shorter than in production: whoever has just saved a file does not want to wait."""
SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules", "site-packages"})

Stamp = tuple[int, int]


class Sources:
    """The Python files below a directory, and when they changed. Hidden directories and virtual environments are left
    out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen = self._look()

    def _look(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for directory, inner, files in os.walk(self.root):
            inner[:] = [name for name in inner if not _is_skipped(directory, name)]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(directory, name)
                    try:
                        stat = os.stat(path)
                    except OSError:
                        continue  # gone while we looked
                    found[path] = (stat.st_mtime_ns, stat.st_size)
        return found

    def changed(self) -> list[str]:
        """The files that changed, came or went since the last call, relative to the root."""
        before, self._seen = self._seen, self._look()
        paths = before.keys() | self._seen.keys()
        return sorted(os.path.relpath(path, self.root) for path in paths if before.get(path) != self._seen.get(path))


def _is_skipped(directory: str, name: str) -> bool:
    return (
        name.startswith(".")
        or name in SKIPPED_DIRECTORIES
        or os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
    )


class ReloadingExecutor:
    """``sharded-wf worker`` as a child, replaced when a source file changes. ``announce`` is told what happens, a line
    each. ``arguments``: those of ``sharded-wf worker``."""

    def __init__(self, arguments: Sequence[str], sources: Sources, announce: Callable[[str], None]) -> None:
        self._arguments = ["worker", *arguments, "--drain-seconds", f"{DRAIN_SECONDS:g}"]
        self._sources = sources
        self._announce = announce
        self._ending = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """Make ``run`` return soon. May be called from a signal handler, and more than once."""
        self._ending.set()

    def run(self) -> None:
        """Run and replace the executor until ``end`` is called. An executor that ends by itself (an error in the app)
        is started again at the next change."""
        try:
            self._start()
            while not self._ending.wait(LOOK_EVERY_SECONDS):
                self._note_end()
                if changed := self._sources.changed():
                    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                    self._announce(f"{changed[0]}{more} changed")
                    self._stop()
                    self._start()
        finally:
            self._stop()

    def _start(self) -> None:
        self._child = start_child(self._arguments)
        self._announce(f"executor {self._child.pid} started")

    def _note_end(self) -> None:
        child = self._child
        if child is None or child.poll() is None:
            return
        self._child = None
        code = child.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._announce(f"executor {child.pid} {how}; it starts again when a file changes")

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(DRAIN_SECONDS + 3.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin is not None:
            child.stdin.close()
