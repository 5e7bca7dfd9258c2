"""All families of checks, in the order in which they are shown: what stops everything comes first."""

from __future__ import annotations

from sharded_wf.doctor import (
    clocks,
    connections,
    leases,
    placement,
    plans,
    reach,
    replication,
    schema,
    sessions,
    settings,
    vacuum,
    work,
)
from sharded_wf.doctor.checks import Family

FAMILIES: tuple[Family, ...] = (
    reach.FAMILY,
    placement.FAMILY,
    schema.FAMILY,
    settings.FAMILY,
    leases.FAMILY,
    work.FAMILY,
    sessions.FAMILY,
    vacuum.FAMILY,
    replication.FAMILY,
    connections.FAMILY,
    plans.FAMILY,
    clocks.FAMILY,
)
"""To add a check, write a function that yields findings, name it in its family, give it a section in the runbook."""
WRONG_DATABASE = "wrong-database"
"""Found before any check can be made: the database is not the shard that the configuration says."""
