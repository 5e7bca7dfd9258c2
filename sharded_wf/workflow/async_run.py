"""A run of an ``async def`` workflow: a coroutine on a deterministic loop.

One turn goes: hand one recorded result to the code, run its callbacks until none is ready, hand it the next. When the
history is used up, what the code asked for meanwhile, and still wants, begins; the run then sleeps until the host
delivers.
"""

from __future__ import annotations

from asyncio import Future, Task, _set_running_loop
from collections import deque
from collections.abc import Callable
from contextvars import Context as VariableContext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from mmh3 import hash64

from sharded_wf.clock import Microseconds
from sharded_wf.errors import NonDeterminismError, WorkflowStuck
from sharded_wf.model.history import Entry, EntryKind, History
from sharded_wf.model.workflow import Start
from sharded_wf.serialization.values import ValueCodec
from sharded_wf.workflow.closing import close
from sharded_wf.workflow.commands import ChildCommand, ReceiveCommand, SendCommand, TimerCommand
from sharded_wf.workflow.context import set_scope
from sharded_wf.workflow.guarded import GuardedAttempt
from sharded_wf.workflow.loop import WorkflowLoop, current_task
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, Replay
from sharded_wf.workflow.run import WorkflowRun
from sharded_wf.workflow.stage import Stage
from sharded_wf.workflow.steps import StepCommand
from sharded_wf.workflow.stop import RunDropped

if TYPE_CHECKING:
    from sharded_wf.workflow.definitions import StepDefinition, WorkflowDefinition
    from sharded_wf.workflow.host import Host


class AsyncRun(WorkflowRun):
    """One ``async def`` workflow in memory."""

    __slots__ = ("backlog", "driving", "here", "loop", "sends", "task", "variables")

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
        WorkflowRun.__init__(self, definition, host, workflow_id, input, history, started_at, attempt)
        self.loop = WorkflowLoop(self, started_at)
        self.task: Task[Any] | None = None
        self.variables: VariableContext | None = None
        """The context variables of its main task."""
        self.here: VariableContext | None = None
        """Those of the callback that runs."""
        self.driving = False
        self.backlog: deque[Entry] | None = None
        self.sends: list[SendCommand] | None = None
        """Messages that the code has asked to send and that have no number yet."""

    # The code asks

    def issue_step(self, step: StepDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCommand:
        if self.stopped:
            raise RunDropped
        text = (step.known_arguments or step.arguments).fingerprint_text(args, kwargs)
        command = step.command(self, step, args, kwargs, Future(loop=self.loop))
        replay = self.replay
        if replay is None:
            replay = self.replay = Replay(self.history)
        replay.issue(command, hash64(text, step.seed)[0])
        if command.phase == ISSUED:
            here = self.here
            none_set = step.plain and here is not None and here is self.variables and len(here) == 1
            command.prepare(None if none_set else copy_context())
        return command

    def issue_callback(
        self, delay_us: int, callback: Callable[..., Any], args: tuple[Any, ...], context: VariableContext
    ) -> TimerCommand:
        command = TimerCommand(self, self.loop.now_us, delay_us, callback, args, context)
        self.issue(command, command.delay_ms)
        return command

    def issue_receive(self, topic: str, base: int, codec: ValueCodec[Any]) -> ReceiveCommand:
        if self.stopped:
            raise RunDropped
        command = ReceiveCommand(self, topic, codec, Future(loop=self.loop))
        payload = self.returned_message(topic)
        if payload is None:
            self.issue(command, base)
        else:
            command.phase = ENDED
            command.resolve(payload)
        return command

    def issue_send(self, receiver: str, topic: str, base: int, payload: bytes) -> SendCommand:
        if self.stopped:
            raise RunDropped
        command = SendCommand(self, receiver, topic, payload, Future(loop=self.loop))
        self.issue(command, base)
        if self.sends is None:
            self.sends = [command]
        else:
            self.sends.append(command)
        return command

    def new_future(self) -> Future[Any]:
        """Where the code is to wait for something."""
        if self.stopped:
            raise RunDropped
        return Future(loop=self.loop)

    def issue_child(self, start: Start, base: int, codec: ValueCodec[Any]) -> ChildCommand:
        if self.stopped:
            raise RunDropped
        command = ChildCommand(self, start, codec, Future(loop=self.loop))
        self.issue(command, base)
        return command

    def forget(self, command: Any) -> None:
        command.phase = ENDED
        if self.replay is not None:
            self.replay.commands.pop(command.place, None)

    def call_back(self, callback: Callable[..., Any], args: tuple[Any, ...], context: VariableContext | None) -> None:
        self.loop.call_soon(callback, *args, context=context)

    def run_in_thread(self, command: StepCommand | GuardedAttempt, variables: VariableContext) -> Any:
        return self.host.threads.submit(command.run_and_report, variables)

    def on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        callback(*args)

    def code_time_us(self) -> Microseconds:
        return self.loop.now_us

    def replaying(self) -> bool:
        replay = self.replay
        return self.stopped or (replay is not None and replay.position < replay.total)

    # The host answers

    def start(self) -> None:
        host = self.host
        if not host.stage.is_open and current_task(host.loop) is not None:
            host.loop.call_soon(self.start)
            return
        if self.stopped:
            return
        definition = self.definition
        try:
            args, kwargs = (definition.known_arguments or definition.arguments).decode(self.input)
            coroutine = definition.function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - input that doesn't fit: it fails, and is not tried for ever
            self.end(self.failed(error))
            return
        self.variables = variables = VariableContext()
        variables.run(set_scope, self)
        self.task = Task(coroutine, loop=self.loop, name=self.id, context=variables)
        self._drive(None)

    def deliver(self, entry: Entry) -> None:
        stage = self.host.stage
        if not stage.is_open or self.driving or self.backlog is not None:
            self._deliver_alone(entry)
        elif not self.stopped:
            self.busy -= 1
            self._turn(entry, stage)

    def _deliver_alone(self, entry: Entry) -> None:
        """Deliver what does not come with a flush; if it can't be now, soon."""
        if self.stopped:
            return
        host = self.host
        if self.driving or self.backlog is not None or current_task(host.loop) is not None:
            if self.backlog is None:
                self.backlog = deque()
                host.loop.call_soon(self._deliver_backlog)
            self.backlog.append(entry)
            return
        self.busy -= 1
        self._drive(entry)

    def _deliver_backlog(self) -> None:
        backlog, self.backlog = self.backlog, None
        while backlog and not self.stopped:
            self.busy -= 1
            self._drive(backlog.popleft())

    def _note_unasked(self, entry: Entry) -> None:
        """What no command of the code waits for has entered the workflow."""
        if self.is_cancel(entry) and self.task is not None:
            self.task.cancel("the workflow was cancelled")
            self.note_cancelled(entry)
        elif entry.kind is EntryKind.RESUME:
            self.note_resumed(entry)

    # Turns

    def _drive(self, entry: Entry | None) -> None:
        """One turn; on the open stage, if it is, else with the stage for itself."""
        stage = self.host.stage
        if stage.is_open:
            self._turn(entry, stage)
        else:
            with stage:
                self._turn(entry, stage)

    def _turn(self, entry: Entry | None, stage: Stage) -> None:
        """Hand over an entry and run the code as far as it can go."""
        loop, task = self.loop, self.task
        assert task is not None
        self.driving = True
        _set_running_loop(loop)
        try:
            while True:
                if entry is not None:  # it enters the workflow; its time goes on
                    if entry.completed_at > loop.now_us:
                        loop.now_us = entry.completed_at
                    assert self.replay is not None
                    command = self.replay.commands.pop(entry.place, None)
                    if command is not None:
                        command.deliver(entry)
                    else:
                        self._note_unasked(entry)
                self._run_ready(loop)
                if task.done():
                    self._end(task)
                    return
                if self.sends is not None:
                    self.number_sends(self.sends)
                    self.sends = None
                replay = self.replay
                if replay is None or (replay.position == replay.total and not replay.late):
                    break
                entry = replay.next_entry()
        except NonDeterminismError as error:
            self.end(self.failed(error))
            return
        finally:
            self.driving = False
        if replay is None or not replay.commands:
            self.end(self.failed(WorkflowStuck(_stuck_text(task))))
        else:
            stage.waiting.append(self)

    def go_on(self, now_us: Microseconds) -> None:
        """Begin what the code has asked for and still wants; while it is paused, nothing."""
        replay = self.replay
        if replay is None:
            return
        fresh = replay.fresh
        if fresh and (self.waits is None or not self.waits.pausing):
            replay.fresh = []
            self.driving = True  # a host that answers at once must not re-enter
            attempts = self.host.attempts
            try:
                for command in fresh:
                    if command.phase != ISSUED or self.stopped:
                        continue
                    if type(command) is StepCommand and command.step.plain and replay.attempts is None:
                        # What `begin` would do, a few calls shorter.
                        command.phase = LIVE
                        command.started_at = now_us
                        self.busy += 1
                        attempts.make(command, command.variables)
                    else:
                        command.begin()
            finally:
                self.driving = False
        if self.busy == 0:
            self.waiting_since = self.host.clock.monotonic()

    def _run_ready(self, loop: WorkflowLoop) -> None:
        ready, first = loop.ready, loop.next
        if first:
            ready[:0] = reversed(first)
            first.clear()
        for call in ready:  # which grows meanwhile
            while True:
                callback = call.callback
                if callback is not None:
                    try:
                        self.here = context = call.context
                        args = call.args
                        if len(args) == 1:  # a task that goes on; three times as fast as the general form
                            context.run(callback, args[0])
                        else:
                            context.run(callback, *args)
                    except (SystemExit, KeyboardInterrupt) as error:
                        self._interrupted(error)
                    except Exception as error:  # noqa: BLE001 - as asyncio does with callbacks that fail
                        loop.call_exception_handler({"message": f"{callback!r} failed", "exception": error})
                if not first:
                    break
                call = first.pop()
        ready.clear()

    def unpaused(self) -> None:
        stage = self.host.stage
        if stage.is_open:
            stage.waiting.append(self)
        elif not self.driving:
            self.go_on(self.host.clock.now_us())

    def _interrupted(self, error: BaseException) -> None:
        """``SystemExit`` is the failure of the task that raised it, as asyncio keeps it; Ctrl-C is for the process."""
        if isinstance(error, KeyboardInterrupt):
            self.host.loop.call_soon(self.drop)
            raise error

    def _end(self, task: Task[Any]) -> None:
        """The code has ended."""
        try:
            replay = self.replay
            if replay is not None and replay.position < replay.total:
                replay.check_leftovers()
            value = task.result()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever left the workflow is its outcome
            self.ended_with(error)
        else:
            self.end(self.succeeded(value))

    # The end

    def drop(self) -> None:
        if self.outcome is None and not self.stopped:
            self.release()

    def release(self) -> None:
        WorkflowRun.release(self)
        self.waits = None
        self.replay = self.variables = self.here = None
        loop = self.loop
        loop.stopped = True
        task, self.task = self.task, None
        tasks = [kept for kept in loop.tasks if not kept.done()] if loop.tasks else []
        loop.tasks = []
        if task is not None and not task.done():
            tasks.insert(0, task)
        if tasks:
            close(loop, tasks)
        if loop.ready or loop.next:
            loop.ready.clear()
            loop.next.clear()
        # Breaks the cycle, so that thousands of ended runs are no work for the garbage collector. Nobody asks for it
        # again: whatever would checks `stopped` first.
        del self.loop


def _stuck_text(task: Task[Any]) -> str:
    frames = task.get_stack()
    where = ""
    if frames:
        frame = frames[-1]
        where = f" at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
    return f"the workflow waits{where}, and no step, timer, message or child is under way that could wake it"
