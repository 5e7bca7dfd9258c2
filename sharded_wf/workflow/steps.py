"""Running a step: on the host's loop if it is ``async def``, in a thread if it is ``def``; its attempts, its timeout,
and the recording of what came out.

A step runs only when nothing is recorded of it. What the code receives is what will be read back on replay: the result
goes through JSON, an error through its stored form. Arguments are copied first (unless they are of types that can't
change), so that a step which changes them does not change the workflow's own: on replay it would not.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import threading
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any, Protocol

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.limits import HISTORY_WARN_ENTRIES, PAUSED_RETRY_LOOK_SECONDS
from sharded_wf.model.history import Entry, EntryKind, FailedAttempt
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.blame import recorded_error
from sharded_wf.workflow.commands import NULL, Answer
from sharded_wf.workflow.context import Context, scope
from sharded_wf.workflow.history_limit import history_is_full
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, RECORDING

if TYPE_CHECKING:
    from sharded_wf.workflow.definitions import StepDefinition
    from sharded_wf.workflow.run import WorkflowRun

UNCHANGEABLE = frozenset({str, int, float, bool, bytes, type(None)})
"""Exact types of arguments that need no copy."""
_STEP = EntryKind.STEP
_NO_VALUE: Any = object()
_PAUSED_US = 3600 * SECOND_US
"""What a paused workflow says is the next attempt's time, so that it can be parked."""


class StepCommand:
    """One call of a step by a workflow's code."""

    __slots__ = (
        "args",
        "attempt",
        "fingerprint",
        "future",
        "kwargs",
        "name",
        "phase",
        "place",
        "run",
        "running",
        "started_at",
        "step",
        "timer",
        "value",
        "variables",
    )
    kind = EntryKind.STEP
    place: int
    fingerprint: int
    phase: int
    attempt: int
    started_at: Microseconds

    def __init__(
        self,
        run: WorkflowRun,
        step: StepDefinition[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        future: Answer,
    ) -> None:
        self.run = run
        self.step = step
        self.name = step.name
        self.args = args
        self.kwargs = kwargs
        self.future: Any = future
        self.attempt = 1
        self.running: Any = None
        self.value: Any = _NO_VALUE
        self.timer: asyncio.TimerHandle | None = None
        """Goes off when the next attempt is due, or, in a thread, when the time for this one is over."""

    def prepare(self, variables: VariableContext | None) -> None:
        """It will run: keep its arguments and context ``variables`` as they are now, when the code asked for it.
        (None, for one attempt that is a coroutine: the code has set none.)"""
        self.variables: VariableContext | None = variables
        if self.kwargs:
            self.args, self.kwargs = self._copied()
            return
        for value in self.args:
            if type(value) not in UNCHANGEABLE:
                self.args, self.kwargs = self._copied()
                return

    def _copied(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return copy.deepcopy((self.args, self.kwargs))
        except Exception:  # noqa: BLE001 - something like a lock or a client, which only makes sense as itself
            return self.args, self.kwargs

    def describe(self) -> str:
        shown = [repr(value) for value in self.args] + [f"{key}={value!r}" for key, value in self.kwargs.items()]
        return f"step {self.name!r} called with ({', '.join(shown)[:200]})"

    # Scope: what `current()` finds in the step

    def context(self) -> Context:
        run = self.run
        key = self.idempotency_key()
        return Context(run.id, run.definition.name, self.attempt, run.host.state, self.name, key, run=run)

    def idempotency_key(self) -> str:
        """The same in every attempt of this call and in no other: from the workflow, its run, the step, the arguments
        and their occurrence (which the fingerprint holds)."""
        text = f"{self.run.id}\0{self.name}\0{self.fingerprint}"
        if (number := self.run.number) > 1:
            text += f"\0{number}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    # Attempts

    def begin(self) -> None:
        self.phase = LIVE
        failed = self.run.last_attempt(self.place)
        if failed is None:
            self.launch()
        else:
            self.attempt = failed.attempt + 1
            self._launch_at(failed.retry_at)

    def _launch_at(self, when: Microseconds) -> None:
        delay_us = when - self.run.host.clock.now_us()
        if delay_us <= 0:
            self.launch()
        else:
            self.run.await_retry(self, when)
            self.timer = self.run.host.loop.call_later(delay_us / 1_000_000, self._retry_due)

    def wait_anew(self, when: Microseconds) -> None:
        """The clock has jumped while the next attempt, due at ``when``, was waited for."""
        if self.timer is not None and self.running is None:
            self.timer.cancel()
            self.timer = None
            self.run.retry_begins(self)
            self._launch_at(when)

    def _retry_due(self) -> None:
        run = self.run
        if run.waits is not None and run.waits.pausing:
            run.await_retry(self, run.host.clock.now_us() + _PAUSED_US)
            self.timer = run.host.loop.call_later(PAUSED_RETRY_LOOK_SECONDS, self._retry_due)
            return
        self.timer = None
        self.run.retry_begins(self)
        self.launch()

    def launch(self) -> None:
        """Make the next attempt."""
        run = self.run
        host = run.host
        run.busy += 1
        self.started_at = host.clock.now_us()
        # Attempts that may overlap (a thread can't be stopped) need a copy each: a context is entered by one at a time.
        step = self.step
        variables = self.variables
        if variables is not None and not step.once:
            variables = variables.copy()
        if step.is_async:
            host.attempts.make(self, variables)
            return
        assert variables is not None
        variables.run(scope.set, self)
        if step.timeout_seconds is not None:
            self.timer = host.loop.call_later(step.timeout_seconds, self._timed_out, self.attempt)
        self.running = run.run_in_thread(self, variables)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for one attempt; if there may be more, each gets its own copy."""
        if self.step.once:
            return self.args, self.kwargs
        return self._copied()

    def run_here(self, variables: VariableContext) -> tuple[bool, Any]:
        """Call a ``def`` step in this thread: whether it succeeded, and its result or error."""
        args, kwargs = self.arguments()
        try:
            return True, variables.run(self.step.function, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whatever it raised is its result
            return False, error

    def run_and_report(self, variables: VariableContext) -> None:
        """Call a ``def`` step in a thread of its own or of the pool; the outcome goes to the host's loop."""
        attempt = self.attempt
        succeeded, result = self.run_here(variables)
        try:
            self.run.host.loop.call_soon_threadsafe(self.report, attempt, succeeded, result)
        except RuntimeError:  # the loop has been closed meanwhile
            return

    def report(self, attempt: int, succeeded: bool, result: Any) -> None:
        """A thread has done attempt number ``attempt``; too late, if that timed out or nobody wants it any more."""
        if self.phase != LIVE or attempt != self.attempt or self.run.stopped:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if succeeded:
            self.succeed(result)
        else:
            self.fail(result)

    def _timed_out(self, attempt: int) -> None:
        self.report(attempt, False, TimeoutError(self.timeout_text()))

    def timeout_text(self) -> str:
        return f"step {self.name!r} took longer than {self.step.timeout_seconds:g} s"

    def succeed(self, result: Any) -> None:
        """An attempt returned ``result``: have it recorded."""
        run, step = self.run, self.step
        try:
            output, self.value = (step.known_result or step.result).store(result)
        except Exception as error:  # noqa: BLE001 - a value without a JSON form, or whose own methods fail
            self.fail(error)
            return
        self.phase = RECORDING
        self.running = None
        self.variables = None  # they hold this command, as the scope: a cycle, and work for the garbage collector
        # What `run.record` would do; but it is as busy as before.
        run.last_ordinal = ordinal = run.last_ordinal + 1
        if ordinal >= HISTORY_WARN_ENTRIES and history_is_full(run, ordinal):
            return
        host, now_us = run.host, run.host.clock.now_us()
        host.record(
            run,
            Entry(self.place, ordinal, _STEP, self.name, self.fingerprint, output, None, self.started_at, now_us),
        )

    def fail(self, error: BaseException) -> None:
        """An attempt raised ``error``: have it recorded, as one of several or as the end."""
        run = self.run
        run.busy -= 1
        self.running = None
        now_us = run.host.clock.now_us()
        text = encode_error(error)
        # Only an Exception is tried again: a SystemExit was meant.
        if isinstance(error, (Exception, asyncio.CancelledError)) and self.step.retry.allows(self.attempt, error):
            retry_at = now_us + self.step.retry.delay_us(self.attempt)
            run.record_attempt(FailedAttempt(self.place, self.attempt, text, self.started_at, now_us, retry_at))
            return
        self.phase = RECORDING
        self.variables = None
        run.record(self, None, text, self.started_at, now_us)

    def attempt_recorded(self, attempt: FailedAttempt) -> None:
        """The failed attempt is durable: the next may follow."""
        if self.phase == LIVE:
            self.attempt = attempt.attempt + 1
            self._launch_at(attempt.retry_at)

    # The end

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        future = self.future
        if future.done():
            return
        if entry.error is not None:
            future.set_exception(recorded_error(entry))
        elif self.value is not _NO_VALUE:
            future.set_result(self.value)
        else:
            try:
                value = self.step.result.decode(entry.output or NULL)
            except Exception as error:  # noqa: BLE001 - StoredValueMismatch, or what a user's own class raises
                future.set_exception(error)
            else:
                future.set_result(value)

    def abandon(self) -> None:
        """The code gave it up: stop it if it runs, and record nothing."""
        if self.phase == LIVE:
            self.stop()
            self.run.forget(self)
        elif self.phase == ISSUED:
            self.run.forget(self)

    def stop(self) -> None:
        """Stop what runs. A ``def`` step can't be stopped; its result is ignored."""
        running, self.running = self.running, None
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
            if running is None:
                self.run.retry_begins(self)
        if running is not None:
            self.phase = ENDED
            self.run.busy -= 1
            running.cancel()
        self.variables = None


class Threaded(Protocol):
    """What a thread calls."""

    name: str

    def run_and_report(self, variables: VariableContext) -> None: ...


class InThisThread:
    """Stands for a step that a ``def`` workflow's own thread runs; it can't be stopped."""

    __slots__ = ()

    def cancel(self) -> bool:
        return False


class OwnThread:
    """Runs a ``def`` step in a thread of its own; looks like the future of a pool."""

    __slots__ = ()

    def __init__(self, command: Threaded, variables: VariableContext) -> None:
        threading.Thread(target=command.run_and_report, args=(variables,), name=command.name, daemon=True).start()

    def cancel(self) -> bool:
        """It can't be stopped."""
        return False
