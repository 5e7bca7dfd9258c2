"""The event loop of one async workflow: asyncio without time, threads or I/O of its own.

Everything that enters it is a recorded result; between two of them the callbacks run in the order in which they were
scheduled. So the same history gives the same run, and whatever asyncio builds from futures, tasks and timers
(``gather``, ``TaskGroup``, queues, locks, timeouts) is durable without knowing it. Its time is the workflow's: when it
started, and then when the last delivered result was completed.

It is never *run*. Its owner calls what is in ``ready`` while the loop is set as the running one, from a plain
callback of the real loop, because Python (3.14) does not let a task be entered inside a task.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio import Future, Task, _get_running_loop
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, NoReturn

import mmh3
import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.limits import TIMER_MAX_SECONDS
from sharded_wf.workflow.durability import not_durable
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.tasks import WorkflowTask

if TYPE_CHECKING:
    from sharded_wf.workflow.async_run import AsyncRun

_log = logging.getLogger("sharded_wf.workflow")
_TASKS_BEFORE_SWEEP = 64
_TASK_NUMBER_BITS = 10


class Call(msgspec.Struct, eq=False):
    """A callback in the ready queue. A struct, because it is made for every callback and asyncio's own ``Handle`` costs
    several times as much; it has the methods of a handle that callers use."""

    callback: Callable[..., Any] | None
    args: tuple[Any, ...]
    context: Context

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


# Not known to type checkers as a loop: most of its methods are made below, and all of those refuse.
_Loop: Any = asyncio.AbstractEventLoop

_tasks: Any = asyncio.tasks
"""What asyncio offers to those who write loops, and keeps from type checkers."""
if sys.version_info >= (3, 12):
    current_task: Callable[[Any], Any] = asyncio.current_task
    """The task that a loop runs, or ``None``; asked at every delivery."""
    swap_current_task: Callable[[Any, Any], Any] = _tasks._swap_current_task
    """Make a task, or ``None``, the one that a loop runs; gives back which it was."""
else:
    current_task = _tasks._current_tasks.get  # the public function is written in Python there

    def swap_current_task(loop: Any, task: Any) -> Any:
        before = _tasks._current_tasks.pop(loop, None)
        if task is not None:
            _tasks._current_tasks[loop] = task
        return before


class WorkflowLoop(_Loop):  # type: ignore[misc]  # pyright: ignore[reportUntypedBaseClass]
    """The deterministic loop of ``run``."""

    __slots__ = ("next", "now_us", "ready", "run", "stopped", "task_number", "tasks", "tasks_sweep_at")

    def __init__(self, run: AsyncRun, now_us: Microseconds) -> None:
        self.run = run
        self.now_us = now_us
        self.ready: list[Call] = []
        """Callbacks, in the order in which they are to run; emptied when all have run."""
        self.next: list[Call] = []
        """Callbacks that run before those, the last one first."""
        self.stopped = False
        self.task_number = 0
        self.tasks: list[Task[Any]] = []
        self.tasks_sweep_at = _TASKS_BEFORE_SWEEP

    # Callbacks and time

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        call = Call(callback, args, copy_context() if context is None else context)
        self.ready.append(call)
        return call

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if self.stopped:
            raise RunDropped
        if not delay > 0:
            if delay != delay:
                raise ValueError("a delay can't be NaN")
            return self.call_soon(callback, *args, context=context)
        delay_us = round(min(delay, TIMER_MAX_SECONDS) * SECOND_US)
        return self.run.issue_callback(delay_us, callback, args, copy_context() if context is None else context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        return self.call_later(when - self.now_us / SECOND_US, callback, *args, context=context)

    def time(self) -> float:
        """The workflow's time, in seconds since the Unix epoch."""
        return self.now_us / SECOND_US

    # Futures and tasks

    def create_future(self) -> Future[Any]:
        if self.stopped:
            raise RunDropped
        return Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: Context | None = None,
        **_options: Any,
    ) -> Task[Any]:
        if self.stopped:
            coro.close()
            raise RunDropped
        return self.keep(self.make_task(WorkflowTask, coro, name, context))

    def make_task(self, kind: type[WorkflowTask], coro: Any, name: object, context: Context | None) -> WorkflowTask:
        """A task with its number. Of small sets the order is that of creation; tasks of different workflows differ,
        because asyncio keeps all tasks of a process in one set."""
        number = self.task_number
        if number == 0:
            number = mmh3.hash(self.run.id.encode("utf-8", "surrogatepass"), signed=False) << _TASK_NUMBER_BITS
        self.task_number = number + 1
        task = kind.__new__(kind)
        task.number = number  # its hash, which its making asks for
        task.__init__(coro, loop=self, name=None if name is None else str(name), context=context)  # type: ignore[misc]
        return task

    def keep(self, task: Task[Any]) -> Task[Any]:
        """Remember a task until it is done, so that it can be closed when the run is dropped."""
        tasks = self.tasks
        tasks.append(task)
        if len(tasks) >= self.tasks_sweep_at:
            self.tasks = tasks = [kept for kept in tasks if not kept.done()]
            self.tasks_sweep_at = max(_TASKS_BEFORE_SWEEP, 2 * len(tasks))
        return task

    def finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An async generator was left unfinished: close it as a task of this workflow, as asyncio does on its loop."""
        if not self.stopped:
            self.create_task(generator.aclose())

    # What other parts of asyncio ask of a loop

    # Asked for every future and task that is made: a method of ours would cost more than the rest of making one.
    get_debug = bool  # called without arguments, it says False

    def is_running(self) -> bool:
        return not self.stopped

    def is_closed(self) -> bool:
        return self.stopped

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.stopped and not self.run.replaying():
            self.run.note_logged()
            error = context.get("exception")
            _log.error("workflow %s: %s", self.run.id, context.get("message"), exc_info=error)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def _timer_handle_cancelled(self, handle: object) -> None:
        pass


_IN_A_STEP = "do it in a step"
_REFUSED: dict[str, str] = {
    "run_in_executor": "call a def step as `await step.in_thread(...)`",
    "call_soon_threadsafe": "let a step await what the other thread does",
    "set_default_executor": _IN_A_STEP,
    "set_task_factory": "create tasks in the ordinary way",
    "set_exception_handler": "handle the exception where it is awaited",
    "set_debug": "debug mode has no meaning here",
    "run_forever": "await it instead",
    "run_until_complete": "await it instead",
    "stop": "return from the workflow",
    "close": "return from the workflow",
    "shutdown_asyncgens": "return from the workflow",
    "shutdown_default_executor": "return from the workflow",
    **dict.fromkeys(
        [
            "add_reader",
            "remove_reader",
            "add_writer",
            "remove_writer",
            "add_signal_handler",
            "remove_signal_handler",
            "getaddrinfo",
            "getnameinfo",
            "create_connection",
            "create_server",
            "create_unix_connection",
            "create_unix_server",
            "start_tls",
            "sendfile",
            "connect_accepted_socket",
            "create_datagram_endpoint",
            "connect_read_pipe",
            "connect_write_pipe",
            "subprocess_shell",
            "subprocess_exec",
            "sock_recv",
            "sock_recv_into",
            "sock_recvfrom",
            "sock_recvfrom_into",
            "sock_sendall",
            "sock_sendto",
            "sock_connect",
            "sock_accept",
            "sock_sendfile",
        ],
        _IN_A_STEP,
    ),
}


def _refusal(name: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: WorkflowLoop, *_args: Any, **_kwargs: Any) -> NoReturn:
        if self.stopped:
            raise RunDropped
        raise not_durable(f"the event loop's {name}()", instead)

    refuse.__name__ = name
    return refuse


for _name, _instead in _REFUSED.items():
    setattr(WorkflowLoop, _name, _refusal(_name, _instead))


def _set_in_order(items: Iterable[Any] = ()) -> Any:
    """What ``set`` is in ``asyncio.tasks``. ``as_completed`` goes over a set of what it was given, and a set of
    coroutines has another order each time."""
    if items and type(_get_running_loop()) is WorkflowLoop:
        return list(dict.fromkeys(items))
    return set(items)


_tasks.set = _set_in_order

if sys.version_info < (3, 12):
    from sharded_wf.workflow import wait_for_311

    wait_for_311.install(WorkflowLoop, Call)
