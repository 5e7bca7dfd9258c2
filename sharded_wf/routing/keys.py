"""From a workflow ID to its hash.

The hash has a seed of our own, so that nobody else's mmh3 partitioning (a load balancer's, a consumer group's)
correlates with ours: if it did, one such partition would fill few of our slots. Name and seed are stored in every
shard, and a process that believes otherwise refuses to start.
"""

from __future__ import annotations

import mmh3

HASH_NAME = "mmh3_x86_32"
HASH_SEED = 0x5AFE5107

# Of bytes: `mmh3.hash` takes a str too, and crashes the process on a lone surrogate.
hash_of_key = mmh3.mmh3_32_uintdigest
"""The hash of a routing key as bytes; the second argument is ``HASH_SEED``."""


def routing_key(workflow_id: str) -> str:
    """The part of the ID that decides its slot: what stands between the first ``{`` and the next ``}`` if that is there
    and not empty, else the whole ID. So ``{customer-42}/order-1`` and ``{customer-42}/order-2`` share a slot."""
    if "{" in workflow_id:
        tag, closed, _ = workflow_id.partition("{")[2].partition("}")
        if tag and closed:
            return tag
    return workflow_id


def hash_of(workflow_id: str) -> int:
    """The hash of the ID's routing key, 0 to 2**32 - 1. A lone surrogate in it is a ``UnicodeEncodeError``."""
    if "{" in workflow_id:
        workflow_id = routing_key(workflow_id)
    return hash_of_key(workflow_id.encode(), HASH_SEED)
