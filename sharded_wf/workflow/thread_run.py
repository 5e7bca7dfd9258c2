"""A run of a ``def`` workflow: its code blocks in a thread, so it has only one thing under way at a time.

The thread owns the replay: it matches requests with the history, and hands itself the recorded results without leaving.
The host's loop owns what is under way. Between them go two lanes: commands to begin are posted to the loop; entries
that have become durable are put on the thread's queue, and take effect only when the code waits, exactly as those of
the history do. To park a run, ``drop`` unwinds the thread from where it waits; replay resumes it there.

``def`` steps run in the workflow's own thread: if all threads of the pool wait in workflows, none need be free for a
step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context as VariableContext
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING, Any

import mmh3

from sharded_wf.clock import Microseconds
from sharded_wf.errors import NonDeterminismError
from sharded_wf.model.history import Entry, EntryKind, History
from sharded_wf.model.workflow import Outcome, Start
from sharded_wf.serialization.values import ValueCodec
from sharded_wf.workflow.commands import ChildCommand, ReceiveCommand, SendCommand, TimerCommand
from sharded_wf.workflow.context import scope
from sharded_wf.workflow.guarded import GuardedAttempt
from sharded_wf.workflow.loop import current_task
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, Replay
from sharded_wf.workflow.run import WorkflowRun
from sharded_wf.workflow.steps import InThisThread, OwnThread, StepCommand
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.thread_answers import ThreadAnswer, time_out, wake
from sharded_wf.workflow.waits import Waits

if TYPE_CHECKING:
    from sharded_wf.workflow.definitions import StepDefinition, WorkflowDefinition
    from sharded_wf.workflow.host import Host

_STOP = object()


class ThreadRun(WorkflowRun):
    """One ``def`` workflow in memory."""

    __slots__ = ("given", "held_back", "idle", "now_us", "queue", "shields", "taken", "thread")
    replay: Replay  # never None here

    def __init__(
        self,
        definition: WorkflowDefinition[Any, Any],
        host: Host,
        workflow_id: str,
        input: bytes,
        history: History,
        started_at: Microseconds,
        attempt: int,
    ) -> None:
        super().__init__(definition, host, workflow_id, input, history, started_at, attempt)
        # Made here, because from now on two threads look at them.
        self.replay = Replay(history)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.waits = Waits(host, history)
        self.now_us = started_at
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.idle = False
        """Whether the code waits, and the loop knows all that it waits for."""
        self.given = 0
        """How many things the loop has put on the queue."""
        self.taken = 0
        """How many of them the thread has taken."""
        self.thread = 0
        self.shields = 0
        """How many calls are under way that a request to cancel must not interrupt."""
        self.held_back: list[Any] = []
        """What the code asked for while the workflow was paused."""

    # On the host's loop

    def start(self) -> None:
        if current_task(self.host.loop) is not None:
            self.host.loop.call_soon(self.start)
            return
        if self.stopped:
            return
        try:
            args, kwargs = self.definition.arguments.decode(self.input)
        except Exception as error:  # noqa: BLE001 - input that doesn't fit: it fails, and is not tried for ever
            self.end(self.failed(error))
            return
        variables = VariableContext()
        variables.run(scope.set, self)
        self.host.threads.submit(variables.run, self._run, args, kwargs)

    def deliver(self, entry: Entry) -> None:
        if self.stopped:
            return
        self.busy -= 1
        self._give(entry)

    def _give(self, item: Any) -> None:
        self.given += 1
        self.idle = False
        self.queue.put(item)

    def is_idle(self) -> bool:
        return self.idle

    def _begin(self, commands: list[Any], taken: int) -> None:
        """The code waits, having taken so many things from the queue; begin what it waits for."""
        if self.stopped:
            return
        self.idle = taken == self.given
        self.held_back += commands
        self.unpaused()
        self.note_waiting()

    def unpaused(self) -> None:
        if self.waits is None or self.waits.pausing:
            return
        commands, self.held_back = self.held_back, []
        for command in commands:
            if command.phase == ISSUED and not self.stopped:
                command.begin()

    def run_in_thread(self, command: StepCommand | GuardedAttempt, variables: VariableContext) -> Any:
        if command.step.timeout_seconds is not None or type(command) is GuardedAttempt:
            return OwnThread(command, variables)
        self._give((command, variables))
        return InThisThread()

    def _report_first(self, command: StepCommand, succeeded: bool, result: Any, taken: int) -> None:
        """The workflow's thread has made the first attempt of a step without asking the loop, and waits."""
        if not self.stopped:
            self.idle = taken == self.given
            self.busy += 1
            command.report(command.attempt, succeeded, result)

    def _finished(self, outcome: Outcome) -> None:
        if self.outcome is None and not self.stopped:
            self.end(outcome)

    def _left_with(self, error: BaseException) -> None:
        if self.outcome is None and not self.stopped:
            self.ended_with(error)

    def drop(self) -> None:
        if self.outcome is None and not self.stopped:
            self.release()

    def release(self) -> None:
        # Before anything is let go of: the thread looks at it.
        self.stopped = True
        self.queue.put(_STOP)
        super().release()

    # In the thread

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.thread = get_ident()
        try:
            self._check()
            value = self.definition.function(*args, **kwargs)
            self.replay.check_leftovers()
        except RunDropped:
            return
        except BaseException as error:  # noqa: BLE001 - whatever left the workflow is its outcome
            self._post(self._left_with, self._mismatch_or(error))
        else:
            self._post(self._finished, self.succeeded(value))

    def _mismatch_or(self, error: BaseException) -> BaseException:
        try:
            self.replay.check_leftovers()
        except NonDeterminismError as mismatch:
            return mismatch
        return error

    def _post(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            self.host.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop has been closed: the process is going down
            raise RunDropped from None

    def issue_step(self, step: StepDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a step and wait for its result."""
        self._check()
        text = step.arguments.fingerprint_text(args, kwargs)
        answer = ThreadAnswer()
        command = step.command(self, step, args, kwargs, answer)
        self.issue(command, mmh3.hash64(text, step.seed)[0])
        if command.phase == ISSUED:
            command.prepare(copy_context())
        return self._wait(command, answer)

    def receive(self, topic: str, base: int, codec: ValueCodec[Any], timeout_us: int | None) -> Any:
        """Wait for a message. Raises ``TimeoutError``."""
        self._check()
        answer = ThreadAnswer()
        command = ReceiveCommand(self, topic, codec, answer)
        timer = None
        if timeout_us is not None:
            late = f"no message on topic {topic!r} in time"
            timer = TimerCommand(self, self.now_us, timeout_us, time_out, (answer, late), None)
            self.issue(timer, timer.delay_ms)
        payload = self.returned_message(topic)
        if payload is not None:
            command.phase = ENDED
            command.resolve(payload)
        else:
            self.issue(command, base)
        return self._wait(command, answer, timer)

    def sleep(self, delay_us: int, base: int | None = None, timer_class: type[TimerCommand] = TimerCommand) -> None:
        self._check()
        answer = ThreadAnswer()
        command = timer_class(self, self.now_us, delay_us, wake, (answer,), None)
        self.issue(command, command.delay_ms if base is None else base)
        self._wait(command, answer)

    def send_message(self, receiver: str, topic: str, base: int, payload: bytes) -> None:
        self._check()
        answer = ThreadAnswer()
        command = SendCommand(self, receiver, topic, payload, answer)
        self.issue(command, base)
        self.number_sends([command])
        self._wait(command, answer)

    def ask(self, command: Any, base: int, timeout_us: int | None = None, late: str = "") -> Any:
        """Ask for something, and wait for its result. Raises ``TimeoutError(late)``."""
        self._check()
        timer = None
        if timeout_us is not None:
            timer = TimerCommand(self, self.now_us, timeout_us, time_out, (command.future, late), None)
            self.issue(timer, timer.delay_ms)
        self.issue(command, base)
        if command.kind is EntryKind.STEP and command.phase == ISSUED:
            command.prepare(copy_context())
        return self._wait(command, command.future, timer)

    def call_child(self, start: Start, base: int, codec: ValueCodec[Any]) -> Any:
        command = ChildCommand(self, start, codec, ThreadAnswer())
        try:
            return self.ask(command, base)
        except asyncio.CancelledError:
            self.cancel_child(start.id, command.fingerprint, None)
            raise

    def await_answer(self, answer: ThreadAnswer, timeout_us: int | None) -> Any:
        """Wait for an answer that may come later as well. Raises ``TimeoutError``."""
        self._check()
        late = ThreadAnswer()
        timer = None
        if timeout_us is not None and not answer.done():
            timer = TimerCommand(self, self.now_us, timeout_us, wake, (late,), None)
            self.issue(timer, timer.delay_ms)
        try:
            while not (answer.done() or late.done()):
                self._turn()
        finally:
            if timer is not None and not self.stopped:
                self._give_up_unless_ended(timer, late)
        if not answer.done():
            raise TimeoutError("not in time")
        return answer.get()

    def _check(self) -> None:
        if self.stopped:
            raise RunDropped

    def _wait(self, command: Any, answer: ThreadAnswer, timer: TimerCommand | None = None) -> Any:
        """Let entries take effect, in their order, until there is an answer."""
        try:
            while not answer.done():
                self._turn()
        finally:
            if not self.stopped:
                self._give_up_unless_ended(command, answer)
                if timer is not None:
                    self._give_up_unless_ended(timer, answer)
        return answer.get()

    def _turn(self) -> None:
        """Let one thing happen. Raises ``CancelledError`` if that is a request to cancel."""
        self._let_happen()
        self.raise_if_cancelled()

    def raise_if_cancelled(self) -> None:
        if self.cancel_requested and not self.shields:
            self.cancel_requested = False
            raise asyncio.CancelledError("the workflow was cancelled")

    def _let_happen(self) -> None:
        replay = self.replay
        if replay.position < replay.total or replay.late:
            if (entry := replay.next_entry()) is not None:
                self._hand_over(entry)
            return
        try:
            item = self.queue.get_nowait()
        except Empty:
            if replay.fresh:
                fresh, replay.fresh = replay.fresh, []
                if not self._run_first_attempt(fresh):
                    self._post(self._begin, fresh, self.taken)
            else:
                self._post(self._begin, [], self.taken)
            item = self.queue.get()
        self.taken += 1
        if item is _STOP or self.stopped:
            self.queue.put(_STOP)
            raise RunDropped
        if isinstance(item, Entry):
            self._hand_over(item)
        elif isinstance(item, tuple):
            step, variables = item
            succeeded, result = step.run_here(variables)
            self._check()
            self._post(step.report, step.attempt, succeeded, result)
        else:
            replay.commands.pop(item.place, None)

    def _run_first_attempt(self, fresh: list[Any]) -> bool:
        """Call a ``def`` step at once, without a detour by the loop, if that is what the code waits for."""
        command = fresh[0]
        if not (len(fresh) == 1 and type(command) is StepCommand and command.phase == ISSUED):
            return False
        step = command.step
        if self.waits is None or self.waits.pausing or step.is_async:
            return False
        if step.timeout_seconds is not None or self.last_attempt(command.place) is not None:
            return False
        assert command.variables is not None
        variables = command.variables.copy()
        variables.run(scope.set, command)
        command.started_at = self.host.clock.now_us()
        command.phase = LIVE
        succeeded, result = command.run_here(variables)
        self._check()
        self._post(self._report_first, command, succeeded, result, self.taken)
        return True

    def _hand_over(self, entry: Entry) -> None:
        """One result enters the workflow; its time goes on."""
        self.now_us = max(self.now_us, entry.completed_at)
        command = self.replay.commands.pop(entry.place, None)
        if command is not None:
            command.deliver(entry)
        elif self.is_cancel(entry):
            self.cancel_requested = True
            self._post(self.note_cancelled, entry)
        elif entry.kind is EntryKind.RESUME:
            self.note_resumed(entry)

    def _give_up_unless_ended(self, command: Any, answer: ThreadAnswer) -> None:
        wake(answer)
        if command.phase != ENDED:
            self.give_up(command)

    def give_up(self, command: Any) -> None:
        if command in self.replay.fresh:
            self.replay.fresh.remove(command)
            command.abandon()
        else:
            self._post(command.abandon)

    def forget(self, command: Any) -> None:
        command.phase = ENDED
        if get_ident() == self.thread:
            self.replay.commands.pop(command.place, None)
        elif not self.stopped:
            self._give(command)

    def call_back(self, callback: Callable[..., Any], args: tuple[Any, ...], context: VariableContext | None) -> None:
        callback(*args)

    def on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        self._post(callback, *args)

    def code_time_us(self) -> Microseconds:
        return self.now_us

    def replaying(self) -> bool:
        return self.stopped or self.replay.position < self.replay.total

    def caught_up(self) -> bool:
        under_way = self.idle or any(command.phase == LIVE for command in list(self.replay.commands.values()))
        return self.attempt == 1 or (under_way and not self.replaying())

    def unbegun(self) -> list[Any]:
        return [*self.replay.fresh, *self.held_back]


def thread_run_here() -> ThreadRun | None:
    """The ``def`` workflow whose own code this is, or ``None``."""
    running = scope.get(None)
    return running if isinstance(running, ThreadRun) else None
