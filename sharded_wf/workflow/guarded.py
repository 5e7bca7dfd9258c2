"""Steps that are watched while they run: by a total timeout over all attempts, or by their heartbeats; and sensors,
which are steps that look again and again until what they find is true.

What must survive a crash is one row for each such step, its last heartbeat, written over and over: a step that reports
a million times, and a sensor that looks for a year, leave one row. The total timeout needs no row at all: it counts
from the workflow's own time at the call, which replay gives back.

Attempts may overlap here (a silent thread can't be stopped), so each is an object of its own, and only the current one
is listened to.
"""

from __future__ import annotations

import asyncio
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.limits import HEARTBEAT_SAVE_SECONDS, TIMER_MAX_SECONDS
from sharded_wf.model.history import FailedAttempt, Heartbeat
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.commands import NULL, Answer
from sharded_wf.workflow.context import Context, scope
from sharded_wf.workflow.replay import ENDED, LIVE, RECORDING
from sharded_wf.workflow.steps import StepCommand

if TYPE_CHECKING:
    from sharded_wf.workflow.definitions import StepDefinition
    from sharded_wf.workflow.run import WorkflowRun


class GuardedAttempt:
    """One attempt of a guarded step, as those who make it see it, and as ``current()`` and ``heartbeat()`` find it."""

    __slots__ = ("attempt", "command", "name", "run", "running", "step")

    def __init__(self, command: GuardedStepCommand) -> None:
        self.command = command
        self.attempt = command.attempt
        self.name = command.name
        self.run: WorkflowRun = command.run
        self.step: StepDefinition[Any, Any] = command.step
        self.running: Any = None

    @property
    def phase(self) -> int:
        return self.command.phase if self.is_current else ENDED

    @property
    def is_current(self) -> bool:
        """Whether anybody still wants what it will say."""
        command = self.command
        return command.current is self and command.phase == LIVE and not self.run.stopped

    def context(self) -> Context:
        command, run = self.command, self.run
        return Context(
            run.id, run.definition.name, self.attempt, run.host.state, self.name, command.idempotency_key(),
            run=run, last_heartbeat=command.details,
        )  # fmt: skip

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.command.arguments()

    def timeout_text(self) -> str:
        return self.command.timeout_text()

    def succeed(self, result: Any) -> None:
        if self.is_current:
            self.running = None  # it has ended: nothing is left to be cancelled
            self.command.succeed(result)

    def fail(self, error: BaseException) -> None:
        if self.is_current:
            self.running = None
            self.command.fail(error)

    def report(self, attempt: int, succeeded: bool, result: Any) -> None:
        """The outcome, from a thread or from a timer."""
        if succeeded:
            self.succeed(result)
        else:
            self.fail(result)

    def run_and_report(self, variables: VariableContext) -> None:
        """Call a ``def`` step in a thread; the outcome goes to the host's loop."""
        succeeded, result = self.command.run_here(variables)
        self.post(self.report, self.attempt, succeeded, result)

    def post(self, callback: Any, *args: Any) -> None:
        """From a thread: have this called on the host's loop."""
        try:
            self.run.host.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop has been closed meanwhile
            return

    def beat(self, details: bytes) -> None:
        """It lives, and this is how far it is. On the host's loop."""
        if self.is_current:
            self.command.beat(details)


class GuardedStepCommand(StepCommand):
    """One call of a step with a total timeout or heartbeats."""

    __slots__ = (
        "asked_us",
        "attempts_before",
        "beat_at",
        "current",
        "deadline_us",
        "details",
        "saving",
        "silence_timer",
        "total_seconds",
        "total_timer",
        "unsaved",
    )

    def __init__(
        self,
        run: WorkflowRun,
        step: StepDefinition[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        future: Answer,
        total_seconds: float | None = None,
    ) -> None:
        super().__init__(run, step, args, kwargs, future)
        self.asked_us = run.code_time_us()
        self.total_seconds = step.total_seconds if total_seconds is None else total_seconds
        self.deadline_us = self._deadline()
        self.current: GuardedAttempt | None = None
        self.attempts_before = 0
        """Attempts that do not count any more: those before a sensor's last look."""
        self.total_timer: asyncio.TimerHandle | None = None
        self.silence_timer: asyncio.TimerHandle | None = None
        self.beat_at = 0.0
        self.details: bytes | None = None
        """What was reported last, in this life or an earlier one."""
        self.unsaved: bytes | None = None
        self.saving = False
        """Whether a heartbeat is being saved, or was saved just now, so that the next has to wait."""

    def _deadline(self) -> Microseconds | None:
        if self.total_seconds is None:
            return None
        return self.asked_us + round(min(self.total_seconds, TIMER_MAX_SECONDS) * SECOND_US)

    # Attempts

    def begin(self) -> None:
        self.started_at = self.asked_us
        if self.deadline_us is not None:
            left_us = self.deadline_us - self.run.host.clock.now_us()
            if left_us <= 0:
                self._record(None, encode_error(TimeoutError(self.total_text())))
                return
            self.total_timer = self.run.host.loop.call_later(left_us / SECOND_US, self._out_of_time)
        self.phase = LIVE
        self._begin_after(self.run.last_attempt(self.place), self.run.last_heartbeat(self.place))

    def _begin_after(self, failed: FailedAttempt | None, last: Heartbeat | None) -> None:
        """Go on after what earlier lives have recorded."""
        self.details = None if last is None else last.details
        if failed is None:
            self.launch()
        else:
            self.attempt = failed.attempt + 1
            self._launch_at(failed.retry_at)

    def launch(self) -> None:
        run, step = self.run, self.step
        loop = run.host.loop
        run.busy += 1
        self.started_at = run.host.clock.now_us()
        attempt = self.current = GuardedAttempt(self)
        assert self.variables is not None
        variables = self.variables.copy()
        if step.heartbeat_seconds is not None:
            self.beat_at = loop.time()
            self._listen(attempt)
        if step.is_async:
            run.host.attempts.make(attempt, variables)
            return
        variables.run(scope.set, attempt)
        if step.timeout_seconds is not None:
            late = TimeoutError(self.timeout_text())
            self.timer = loop.call_later(step.timeout_seconds, attempt.report, attempt.attempt, False, late)
        attempt.running = run.run_in_thread(attempt, variables)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._copied()

    def total_text(self) -> str:
        return f"step {self.name!r} took longer than {self.total_seconds:g} s over all attempts"

    def _out_of_time(self) -> None:
        if self.phase == LIVE and not self.run.stopped:
            self._halt()
            self._record(None, encode_error(TimeoutError(self.total_text())))

    def succeed(self, result: Any) -> None:
        try:
            output, self.value = self.step.result.store(result)
        except Exception as error:  # noqa: BLE001 - a value without a JSON form, or whose own methods fail
            self.fail(error)
            return
        self._halt()
        self._record(output, None)

    def fail(self, error: BaseException) -> None:
        self._save_last()
        self._halt()
        run, retry = self.run, self.step.retry
        now_us = run.host.clock.now_us()
        text = encode_error(error)
        number = self.attempt - self.attempts_before
        if isinstance(error, (Exception, asyncio.CancelledError)) and retry.allows(number, error):
            retry_at = now_us + retry.delay_us(number)
            # No time is left for another attempt: then this error says more than that the time was over.
            if self.deadline_us is None or retry_at < self.deadline_us:
                run.record_attempt(FailedAttempt(self.place, self.attempt, text, self.started_at, now_us, retry_at))
                return
        self._record(None, text)

    def _record(self, output: bytes | None, error: bytes | None) -> None:
        self.phase = RECORDING
        if self.total_timer is not None:
            self.total_timer.cancel()
            self.total_timer = None
        self.variables = None
        self.run.record(self, output, error, self.started_at, self.run.host.clock.now_us())

    def _halt(self) -> None:
        """End the attempt, or the wait for the next one."""
        attempt, self.current = self.current, None
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
            if attempt is None:
                self.run.retry_begins(self)
        if self.silence_timer is not None:
            self.silence_timer.cancel()
            self.silence_timer = None
        if attempt is not None:
            self.run.busy -= 1
            if attempt.running is not None:
                attempt.running.cancel()

    def resumed(self, ended_us: Microseconds, resumed_us: Microseconds, *, anew: bool) -> None:
        """The workflow had ended and was resumed: its time begins anew."""
        self.asked_us = resumed_us
        self.deadline_us = self._deadline()

    def time_jumped(self) -> None:
        """The clock has jumped."""
        if self.total_timer is not None and self.deadline_us is not None:
            self.total_timer.cancel()
            left_us = max(0, self.deadline_us - self.run.host.clock.now_us())
            self.total_timer = self.run.host.loop.call_later(left_us / SECOND_US, self._out_of_time)

    def stop(self) -> None:
        self._halt()
        self.phase = ENDED
        if self.total_timer is not None:
            self.total_timer.cancel()
            self.total_timer = None
        self.variables = None

    # Heartbeats

    def _listen(self, attempt: GuardedAttempt) -> None:
        """It may be silent for so long from the last beat on."""
        loop = self.run.host.loop
        limit = self.step.heartbeat_seconds
        assert limit is not None
        if not attempt.is_current:
            return
        left = self.beat_at + min(limit, TIMER_MAX_SECONDS) - loop.time()
        if left <= 0:
            self.fail(TimeoutError(f"step {self.name!r}: no heartbeat for {limit:g} s"))
        else:
            self.silence_timer = loop.call_later(left, self._listen, attempt)

    def beat(self, details: bytes) -> None:
        """The current attempt lives, and this is how far it is."""
        self.beat_at = self.run.host.loop.time()
        self.details = self.unsaved = details
        if not self.saving:
            self._save()

    def _save(self) -> None:
        self.saving = False
        if self.unsaved is not None and self.current is not None and self.current.is_current:
            self._save_last()

    def _save_last(self) -> None:
        """Save what was reported last, if it is not saved."""
        details, self.unsaved = self.unsaved, None
        if details is not None:
            self.saving = True
            now_us = self.run.host.clock.now_us()
            self.run.record_heartbeat(Heartbeat(self.place, self.attempt, now_us, None, details))

    def heartbeat_recorded(self, beat: Heartbeat) -> None:
        """A heartbeat is durable: the next is saved after a while."""
        self.run.host.loop.call_later(HEARTBEAT_SAVE_SECONDS, self._save)


class SensorCommand(GuardedStepCommand):
    """One ``wait_until``: a step that is made again, every so often, until its result is true.

    A look that finds nothing is no attempt that failed: it is saved as the step's last heartbeat, with the moment of
    the next look, and the retries begin anew.
    """

    __slots__ = ("every_us",)

    def __init__(
        self,
        run: WorkflowRun,
        step: StepDefinition[Any, Any],
        args: tuple[Any, ...],
        future: Answer,
        every_us: int,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(run, step, args, {}, future, timeout_seconds)
        self.every_us = every_us

    def describe(self) -> str:
        return f"wait_until on {super().describe()}"

    def total_text(self) -> str:
        return f"wait_until: step {self.name!r} found nothing true within {self.total_seconds:g} s"

    def _begin_after(self, failed: FailedAttempt | None, last: Heartbeat | None) -> None:
        if last is None or last.next_at is None:
            super()._begin_after(failed, None)
            return
        self.attempts_before = last.attempt
        if failed is not None and failed.attempt > last.attempt:
            self.attempt = failed.attempt + 1
            self._launch_at(failed.retry_at)
        else:
            self.attempt = last.attempt + 1
            self._launch_at(last.next_at)

    def succeed(self, result: Any) -> None:
        try:
            found = bool(result)
        except Exception as error:  # noqa: BLE001 - what a user's own class raises
            self.fail(error)
            return
        if found:
            super().succeed(result)
            return
        self._halt()
        run = self.run
        now_us = run.host.clock.now_us()
        next_at = now_us + self.every_us
        if self.deadline_us is not None:
            next_at = min(next_at, self.deadline_us)
        run.record_heartbeat(Heartbeat(self.place, self.attempt, now_us, next_at, NULL))

    def beat(self, details: bytes) -> None:
        """It lives. Its one row says when to look next, so the details are not kept."""
        self.beat_at = self.run.host.loop.time()

    def heartbeat_recorded(self, beat: Heartbeat) -> None:
        """That there was nothing is durable: look again later."""
        if self.phase == LIVE and beat.next_at is not None:
            self.attempts_before = beat.attempt
            self.attempt = beat.attempt + 1
            self._launch_at(beat.next_at)
