"""How an executor fares, for those who watch over processes: two pages over HTTP.

``/healthz``: whether the process does its work at all; restart it if not. A shard that is away is no reason: a restart
would only drop what waits for it. ``/readyz``: whether it serves at least one shard just now, and does not drain. Both
say, as JSON, how each shard fares, and which slots are affected. Nothing is asked for an answer: it says what the
executor knows, and so can't hang with a shard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from sharded_wf.errors import ConfigError
from sharded_wf.limits import HEALTH_REQUEST_MAX_BYTES, HEALTH_REQUEST_SECONDS


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """One shard, as an executor sees it. ``affected``: those of its ``slots`` that can't be worked on now; ``held``:
    workflows in memory; ``problem``: why the shard is not served, in one line."""

    name: str
    slots: tuple[int, ...]
    affected: tuple[int, ...]
    held: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Health:
    """How an executor fares. ``alive``: its heartbeats are made. The counts are those of ``Executor.statistics``."""

    alive: bool
    draining: bool
    held: int
    finished: int
    taken_over: int
    shards: tuple[ShardHealth, ...]

    @property
    def ready(self) -> bool:
        """Whether it serves some shard, and takes new work."""
        return self.alive and not self.draining and any(shard.problem is None for shard in self.shards)

    @property
    def affected(self) -> tuple[int, ...]:
        """The slots that can't be worked on now, of all shards."""
        return tuple(sorted(slot for shard in self.shards for slot in shard.affected))


@contextlib.asynccontextmanager
async def serve_health(look: Callable[[], Health], host: str, port: int) -> AsyncGenerator[int]:
    """Answer requests while the block runs, at this address (port 0: a free one); gives the port. Raises
    ``ConfigError`` if it can't be listened to."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(HEALTH_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer_to(head, look))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host, port, limit=HEALTH_REQUEST_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"health can't be served at {host}:{port}: {error.strerror}; choose another port") from None
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def _answer_to(head: bytes, look: Callable[[], Health]) -> bytes:
    method, path, *_ = [*head.split(b"\r\n", 1)[0].split(), b"", b""]
    if method not in (b"GET", b"HEAD"):
        return _response(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "GET or HEAD only"}, method)
    path = path.split(b"?", 1)[0]
    if path not in (b"/healthz", b"/readyz"):
        return _response(HTTPStatus.NOT_FOUND, {"error": "there are /healthz and /readyz"}, method)
    health = look()
    good = health.alive if path == b"/healthz" else health.ready
    body = {"ready": health.ready, "affected": health.affected, **msgspec.to_builtins(health)}
    return _response(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, body, method)


def _response(status: HTTPStatus, body: object, method: bytes) -> bytes:
    content = msgspec.json.encode(body) + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else content)
