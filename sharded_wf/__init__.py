"""Durable workflows for Python, straight on Postgres, sharded over as many Postgres servers as you have."""

from sharded_wf.application import App, connect, connect_blocking
from sharded_wf.client import Client, Failed, Handle, Repaired
from sharded_wf.client.blocking import BlockingClient, BlockingHandle
from sharded_wf.client.progress import MapProgress
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import (
    AppNotFound,
    ClusterMismatch,
    ClusterNotInitialized,
    CompensationFailed,
    ConfigError,
    DefinitionError,
    EventNeverSet,
    HistoryTooLong,
    IdConflict,
    LeaseLost,
    LimitExceeded,
    MapFailed,
    NaiveMoment,
    NoClusterConfigured,
    NonDeterminismError,
    NotDurableError,
    OldPrimary,
    OutsideWorkflow,
    ReplayFailed,
    ResultTimeout,
    ResumeRefused,
    SchemaOutOfDate,
    ShardedWfError,
    ShardUnavailable,
    StepNotFound,
    StoredValueMismatch,
    TransactionRefused,
    UnstorableValue,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowNotFound,
    WorkflowQuarantined,
    WorkflowStuck,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from sharded_wf.executor import Executor
from sharded_wf.model.attributes import Where, attr
from sharded_wf.model.status import Status
from sharded_wf.retention import Retention
from sharded_wf.workflow.attributes import set_attributes
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.by_name import by_name
from sharded_wf.workflow.children import BlockingChildHandle, ChildHandle, start_child
from sharded_wf.workflow.context import Context, current
from sharded_wf.workflow.definitions import AsyncStep, AsyncWorkflow, SyncStep, SyncWorkflow
from sharded_wf.workflow.events import set_event, wait_event
from sharded_wf.workflow.mapping import MapFailure, MapItem, MapPage, MapResult
from sharded_wf.workflow.maps import map_workflow
from sharded_wf.workflow.messages import receive, send, sleep_blocking
from sharded_wf.workflow.renewal import continue_as_new
from sharded_wf.workflow.retry import Retry
from sharded_wf.workflow.saga import saga
from sharded_wf.workflow.transactions import AsyncTransaction, SyncTransaction
from sharded_wf.workflow.versions import deprecate_patch, patched
from sharded_wf.workflow.waiting import heartbeat, sleep_until, wait_until

__all__ = [
    "App",
    "AppNotFound",
    "AsyncStep",
    "AsyncTransaction",
    "AsyncWorkflow",
    "BlockingChildHandle",
    "BlockingClient",
    "BlockingHandle",
    "Bound",
    "ChildHandle",
    "Client",
    "ClusterConfig",
    "ClusterMismatch",
    "ClusterNotInitialized",
    "CompensationFailed",
    "ConfigError",
    "Context",
    "DefinitionError",
    "EventNeverSet",
    "Executor",
    "Failed",
    "Handle",
    "HistoryTooLong",
    "IdConflict",
    "LeaseLost",
    "LimitExceeded",
    "MapFailed",
    "MapFailure",
    "MapItem",
    "MapPage",
    "MapProgress",
    "MapResult",
    "NaiveMoment",
    "NoClusterConfigured",
    "NonDeterminismError",
    "NotDurableError",
    "OldPrimary",
    "OutsideWorkflow",
    "Repaired",
    "ReplayFailed",
    "ResultTimeout",
    "ResumeRefused",
    "Retention",
    "Retry",
    "SchemaOutOfDate",
    "ShardConfig",
    "ShardUnavailable",
    "ShardedWfError",
    "Status",
    "StepNotFound",
    "StoredValueMismatch",
    "SyncStep",
    "SyncTransaction",
    "SyncWorkflow",
    "TransactionRefused",
    "UnstorableValue",
    "Where",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowNotFound",
    "WorkflowQuarantined",
    "WorkflowStuck",
    "WorkflowTerminated",
    "WorkflowTimedOut",
    "attr",
    "by_name",
    "connect",
    "connect_blocking",
    "continue_as_new",
    "current",
    "deprecate_patch",
    "heartbeat",
    "map_workflow",
    "patched",
    "receive",
    "saga",
    "send",
    "set_attributes",
    "set_event",
    "sleep_blocking",
    "sleep_until",
    "start_child",
    "wait_event",
    "wait_until",
]
