"""The Postgres wire protocol, as far as a proxy must know it to say which statement runs when.

A client's message names a statement in one of two ways: a Query holds its text; an Execute names a portal, which a
Bind made of a statement, which a Parse made of the text, perhaps long ago. The server's answers carry no number, but
they come in order: so the proxy keeps a queue of what the server still owes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

ENCRYPTION_REQUESTS = (80877103, 80877104)
"""TLS and GSSAPI."""

Tag = TypeVar("Tag")


class Framer:
    """Cuts a stream of bytes into the protocol's typed messages: one byte of type, four of length, the body."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole by now, each with its type and length."""
        buffer = self._rest + data
        start = 0
        while len(buffer) - start >= 5:
            end = start + 1 + int(struct.unpack_from("!I", buffer, start + 1)[0])
            if end > len(buffer):
                break
            yield buffer[start:end]
            start = end
        self._rest = buffer[start:]


def _strings(body: bytes, count: int) -> list[str]:
    return [part.decode(errors="replace") for part in body.split(b"\0", count)[:count]]


class Statements:
    """What one client has prepared and bound: gives the text of the statement that a message runs."""

    def __init__(self) -> None:
        self._prepared: dict[str, str] = {}
        self._portals: dict[str, str] = {}

    def text_run_by(self, message: bytes) -> str | None:
        """Learn from a client's message; the text if the server will run it now, else None."""
        kind, body = message[:1], message[5:]
        if kind == b"Q":
            return _strings(body, 1)[0]
        if kind == b"P":
            name, text = _strings(body, 2)
            self._prepared[name] = text
        elif kind == b"B":
            portal, name = _strings(body, 2)
            self._portals[portal] = self._prepared.get(name, "")
        elif kind == b"E":
            return self._portals.get(_strings(body, 1)[0], "")
        return None


@dataclass
class _Owed(Generic[Tag]):
    kind: Literal["query", "execute", "sync"]
    tag: Tag | None
    completed: bool = False


class Answers(Generic[Tag]):
    """What the server still owes to one client; a tag on a statement comes back when the server has executed it."""

    def __init__(self) -> None:
        # The first "ready for query" answers no message but the start of the session.
        self._owed: deque[_Owed[Tag]] = deque([_Owed("sync", None)])

    def expect(self, message: bytes, tag: Tag | None) -> None:
        """Note what a client's message will be answered with."""
        kind = message[:1]
        if kind == b"Q":
            self._owed.append(_Owed("query", tag))
        elif kind == b"E":
            self._owed.append(_Owed("execute", tag))
        elif kind == b"S":
            self._owed.append(_Owed("sync", tag))

    def tag_answered_by(self, message: bytes) -> Tag | None:
        """Learn from a server's message; the tag of the statement of which it says that it was executed."""
        kind = message[:1]
        if not self._owed:
            return None
        head = self._owed[0]
        if kind in b"CIs":
            if head.kind == "execute":
                return self._owed.popleft().tag
            if head.kind == "query" and not head.completed:
                head.completed = True
                return head.tag
        elif kind == b"E":
            while self._owed and self._owed[0].kind == "execute":  # skipped up to the next sync
                self._owed.popleft()
            if self._owed:
                self._owed[0].tag = None  # it comes, but as the end of something that failed
        elif kind == b"Z":
            self._owed.popleft()
            if head.kind == "sync":
                return head.tag
        return None
