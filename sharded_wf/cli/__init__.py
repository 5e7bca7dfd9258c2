"""The command ``sharded-wf``. Each group of commands is a module of its own, listed in ``cli.app``.

Nothing imports from here but the entry point; what the commands do lives in the rooms that they call.
"""

from __future__ import annotations

from sharded_wf.cli.app import main

__all__ = ["main"]
