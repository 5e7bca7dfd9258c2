"""Durable workflows for Python, straight on Postgres, sharded over as many Postgres servers as you have."""

from sharded_wf.application import App, connect, connect_blocking
from sharded_wf.client import Client, Handle
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
    IdConflict,
    LeaseLost,
    LimitExceeded,
    MapFailed,
    NoClusterConfigured,
    NonDeterminismError,
    NotDurableError,
    OutsideWorkflow,
    ResultTimeout,
    SchemaOutOfDate,
    ShardedWfError,
    ShardUnavailable,
    StoredValueMismatch,
    UnstorableValue,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowNotFound,
    WorkflowQuarantined,
    WorkflowStuck,
)
from sharded_wf.executor import Executor
from sharded_wf.model.status import Status
from sharded_wf.retention import Retention
from sharded_wf.workflow.by_name import by_name
from sharded_wf.workflow.children import BlockingChildHandle, ChildHandle, start_child
from sharded_wf.workflow.context import Context, current
from sharded_wf.workflow.definitions import AsyncStep, AsyncWorkflow, Bound, SyncStep, SyncWorkflow
from sharded_wf.workflow.mapping import MapFailure, MapItem, MapPage, MapResult
from sharded_wf.workflow.maps import map_workflow
from sharded_wf.workflow.messages import receive, send, sleep_blocking
from sharded_wf.workflow.retry import Retry
from sharded_wf.workflow.saga import saga

__all__ = [
    "App",
    "AppNotFound",
    "AsyncStep",
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
    "Executor",
    "Handle",
    "IdConflict",
    "LeaseLost",
    "LimitExceeded",
    "MapFailed",
    "MapFailure",
    "MapItem",
    "MapPage",
    "MapProgress",
    "MapResult",
    "NoClusterConfigured",
    "NonDeterminismError",
    "NotDurableError",
    "OutsideWorkflow",
    "ResultTimeout",
    "Retention",
    "Retry",
    "SchemaOutOfDate",
    "ShardConfig",
    "ShardUnavailable",
    "ShardedWfError",
    "Status",
    "StoredValueMismatch",
    "SyncStep",
    "SyncWorkflow",
    "UnstorableValue",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowNotFound",
    "WorkflowQuarantined",
    "WorkflowStuck",
    "by_name",
    "connect",
    "connect_blocking",
    "current",
    "map_workflow",
    "receive",
    "saga",
    "send",
    "sleep_blocking",
    "start_child",
]
