"""``python -m sharded_wf`` is ``sharded-wf``."""

from __future__ import annotations

from sharded_wf.cli import main

main()
