"""For tests of your own workflows: on real Postgres, in no time.

``WorkflowEnvironment`` runs an app on a cluster and skips the time that workflows sleep; ``mock_step`` replaces a
step; ``replay`` tries today's code on stored histories. The pytest plugin (``plugin``) brings the fixture
``workflow_cluster``.
"""

from sharded_wf.serialization.histories import StoredHistory, decode_history, encode_history, write_histories
from sharded_wf.testing.clock import SkippingClock
from sharded_wf.testing.environment import WorkflowEnvironment
from sharded_wf.testing.mocks import StepMock, mock_step
from sharded_wf.testing.replaying import replay

__all__ = [
    "SkippingClock",
    "StepMock",
    "StoredHistory",
    "WorkflowEnvironment",
    "decode_history",
    "encode_history",
    "mock_step",
    "replay",
    "write_histories",
]
