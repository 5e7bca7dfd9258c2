"""Closing what the code of a dropped run has left: without a word, and without effect."""

from __future__ import annotations

import traceback
import warnings
from asyncio import _get_running_loop, _set_running_loop
from typing import TYPE_CHECKING, Any

from sharded_wf.workflow.loop import swap_current_task

if TYPE_CHECKING:
    from sharded_wf.workflow.loop import WorkflowLoop

_warnings: Any = warnings
"""Where Python's own code looks up what it says of a coroutine that was never awaited."""
_CLOSE_TRIES = 100
"""How often a coroutine that awaits on while it is being closed is closed again."""


def close(loop: WorkflowLoop, tasks: list[Any]) -> None:
    """Close what the tasks run, without a word and without effect: whatever it asks for on its way out is refused."""
    outer = _get_running_loop()
    _set_running_loop(loop)
    unawaited = _warnings._warn_unawaited_coroutine
    try:
        # Coroutines that the code made and had not awaited yet go with it; that is no mistake of the user's.
        _warnings._warn_unawaited_coroutine = _ignore
        for task in tasks:
            task._log_destroy_pending = False
            inner = swap_current_task(loop, task)
            try:
                _close_coroutine(task.get_coro())
            finally:
                swap_current_task(loop, inner)
            # Lets go of the future that it waits for, and so of the cycle between them; callbacks are discarded.
            task.cancel()
    finally:
        _warnings._warn_unawaited_coroutine = unawaited
        loop.ready.clear()
        loop.next.clear()
        _set_running_loop(outer)


def _close_coroutine(coroutine: Any) -> None:
    for _ in range(_CLOSE_TRIES):
        try:
            coroutine.close()
        except RuntimeError as error:
            if "ignored GeneratorExit" in str(error):
                continue  # it awaited on; close it at that point
            return
        except BaseException as error:  # noqa: BLE001 - what unwinding raises has no one to go to
            _clear_frames(error)
        return


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames held that the error came through; it may be in a cycle with them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _ignore(_coroutine: Any) -> None:
    pass
