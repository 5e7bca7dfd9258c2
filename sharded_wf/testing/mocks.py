"""Other bodies for steps, for the time of a test. The step keeps its name, its arguments and its recording."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from sharded_wf.workflow.definitions import AsyncStep, SyncStep

Step = AsyncStep[Any, Any] | SyncStep[Any, Any]
_UNSET: Any = object()


class StepMock:
    """What was asked of a mocked step: ``calls`` holds the arguments of each attempt, as ``(args, kwargs)``."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


@contextmanager
def mock_step(
    step: Step,
    does: Callable[..., Any] | None = None,
    *,
    returns: Any = _UNSET,
    raises: BaseException | type[BaseException] | None = None,
) -> Generator[StepMock]:
    """Within the ``with`` block, ``step`` has another body: it calls ``does`` with the step's arguments (plain or
    ``async``), or returns ``returns``, or raises ``raises``. Retries, timeouts and recording are as ever; for the whole
    process, so not for tests that share one. Raises ``ValueError`` unless exactly one of the three is given."""
    if (does is not None) + (returns is not _UNSET) + (raises is not None) != 1:
        raise ValueError("mock_step(...): give a function, or returns=..., or raises=...")
    mock = StepMock()

    def answer(*args: Any, **kwargs: Any) -> Any:
        mock.calls.append((args, kwargs))
        if raises is not None:
            raise raises
        return does(*args, **kwargs) if does is not None else returns

    async def answer_async(*args: Any, **kwargs: Any) -> Any:
        result = answer(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    with _body(step, answer_async if step.is_async else answer):
        yield mock


@contextmanager
def crash_within(step: Step, crash: Callable[[], None], *, after: bool) -> Generator[None]:
    """Within the ``with`` block, the first attempt of ``step`` calls ``crash`` on the event loop, and never returns."""
    loop = asyncio.get_running_loop()
    body = step.function
    crashed = False

    async def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal crashed
        if crashed or not after:
            if not crashed:
                crashed = True
                crash()
                await loop.create_future()  # the run is dropped, and this with it
            return await body(*args, **kwargs)
        crashed = True
        await body(*args, **kwargs)
        crash()
        return await loop.create_future()

    def crashing_thread(*args: Any, **kwargs: Any) -> Any:
        nonlocal crashed
        first, crashed = not crashed, True
        if not first:
            return body(*args, **kwargs)
        result = body(*args, **kwargs) if after else None
        gone = threading.Event()

        def crash_here() -> None:
            crash()
            loop.call_soon(gone.set)  # after the runs were dropped, which are callbacks too

        loop.call_soon_threadsafe(crash_here)
        gone.wait()
        return result  # to nobody

    with _body(step, crashing if step.is_async else crashing_thread):
        yield


@contextmanager
def _body(step: Step, function: Callable[..., Any]) -> Generator[None]:
    step.check()  # what is derived from the true function's signature, before it is gone
    original = step.function
    step.function = function
    try:
        yield
    finally:
        step.function = original
