"""Running suspects alone.

A workflow whose executor died under it more than once, without progress, may be what killed it. It waits in a lane that
ordinary executors don't take from; they only make sure that a process of its own exists for it. That process runs one
workflow at a time and ends when there is none: if it is killed, it is clear by whom.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sharded_wf.executor import lifeline
from sharded_wf.limits import ISOLATED_RESTART_SECONDS

logger = logging.getLogger("sharded_wf.isolation")


class Isolation:
    """Starts the process for suspects, at most one of this executor at a time. ``command``: its command line; None:
    there is none, and suspects stay where they are, visible in ``sharded-wf shards status``."""

    def __init__(self, command: Sequence[str] | None, *, is_isolated: bool = False) -> None:
        self._command = command
        self._is_isolated = is_isolated
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._complained = False

    def wanted(self) -> None:
        """A suspect waits somewhere."""
        if self._is_isolated:
            return  # this very process runs them
        if self._command is None:
            if not self._complained:
                self._complained = True
                logger.warning("a suspect waits for an isolated executor; run `sharded-wf worker` to have it run")
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(self._command), name="isolation")

    async def _run(self, command: Sequence[str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, env=lifeline.environment_without()
        )
        logger.warning("isolated executor %d runs suspects, each alone", self._process.pid)
        code = await self._process.wait()
        self._process = None
        if code < 0:
            logger.warning("the isolated executor was killed by signal %d", -code)
        await asyncio.sleep(ISOLATED_RESTART_SECONDS)

    async def close(self) -> None:
        """End the process, if it runs. Closing twice is fine."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
