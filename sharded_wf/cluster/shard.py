"""One shard as this process reaches it: its connections, and whether it answers.

Every shard has links of its own (a bulkhead): one that hangs takes no connection, no queue and no task from the others.
"""

from __future__ import annotations

from sharded_wf.clock import Clock
from sharded_wf.cluster.writer import Writer
from sharded_wf.postgres.link import Link
from sharded_wf.routing import slot_schema


class Shard:
    """The connections of this process to one shard. Links open when they are first used."""

    def __init__(self, name: str, dsn: str, slots: tuple[int, ...], clock: Clock) -> None:
        self.name = name
        self.dsn = dsn
        self.clock = clock
        self.assign(slots)
        # What is avoided while it is away is asked by nobody: these two find out by themselves when it is back.
        self.reader = Link(dsn, "reader", clock, recovers=True)
        self.writer = Writer(name, Link(dsn, "writer", clock, recovers=True), clock)

    def assign(self, slots: tuple[int, ...]) -> None:
        """The slots that lie here from now on."""
        self.slots = slots
        self.schemas = {slot: slot_schema(slot) for slot in slots}

    def link(self, purpose: str) -> Link:
        """A further connection of its own to this shard."""
        return Link(self.dsn, purpose, self.clock)

    @property
    def healthy(self) -> bool:
        """Whether the shard answered when it was last asked."""
        return self.reader.healthy and self.writer.healthy

    async def close(self) -> None:
        """Close every connection; what still waits to be written fails with ``ShardUnavailable``."""
        await self.writer.close()
        self.reader.close()
