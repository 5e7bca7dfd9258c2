"""A TCP proxy in front of a Postgres server that cuts, holds or delays the wire exactly where a test wants it.

It reads the protocol, so it can act at a statement: before the server gets it, or after the server has executed it and
before the client hears of that. For the ambiguous commit::

    with Proxy(dsn) as proxy:
        cut = proxy.cut(COMMIT, when="after")
        ...                       # work through proxy.dsn
        cut.wait()                # the commit is durable, and the client knows nothing

It runs on a thread of its own, so that tests of any kind can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

from psycopg.conninfo import conninfo_to_dict

from tests.support.wire import ENCRYPTION_REQUESTS, Answers, Framer, Statements

COMMIT = r"^\s*commit\b"
CHUNK_BYTES = 65536
WAIT_SECONDS = 30.0

Moment = Literal["before", "after"]
Action = Literal["cut", "hold"]
Result = TypeVar("Result")


class Rule:
    """What the proxy shall do at a statement; says when it was done."""

    def __init__(
        self, matching: str, when: Moment, action: Action, times: int, at_sync: bool, skip: int, within: str
    ) -> None:
        self.when = when
        self.action = action
        self.count = 0
        """How often it has acted."""
        self._pattern = re.compile(matching, re.IGNORECASE)
        self._within = re.compile(within, re.IGNORECASE)
        self._at_sync = at_sync
        self._left = times
        self._skip = skip
        self._acted = threading.Condition()

    def wants(self, text: str | None, armed: bool, before: Sequence[str] = ()) -> Literal["now", "at sync", "no"]:
        """Whether to act at a message that runs this text (None: a sync, ``armed`` if the text came before it), after
        the texts ``before`` in the same pipeline."""
        if self._left <= 0:
            return "no"
        if text is None:
            return "now" if armed else "no"
        if not self._pattern.search(text):
            return "no"
        if self._within.pattern and not any(map(self._within.search, before)):
            return "no"
        if self._skip > 0:
            self._skip -= 1
            return "no"
        return "at sync" if self._at_sync else "now"

    def take(self) -> bool:
        """Use up one of the times; False if another connection was faster."""
        with self._acted:
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def note(self) -> None:
        with self._acted:
            self.count += 1
            self._acted.notify_all()

    def wait(self, count: int = 1, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the proxy has acted so many times in all."""
        with self._acted:
            if not self._acted.wait_for(lambda: self.count >= count, timeout):
                raise AssertionError(
                    f"/{self._pattern.pattern}/ was met {self.count} times in {timeout} s, not {count}"
                )

    def cancel(self) -> None:
        """Act no more; what was done stays done."""
        with self._acted:
            self._left = 0


class Proxy:
    """The proxy of one server; as a context manager it runs inside the block. Several clients may use it at once.

    Args:
        dsn: a connection string of the server, over a Unix socket or TCP.
    """

    def __init__(self, dsn: str) -> None:
        parameters = conninfo_to_dict(dsn)
        self._host = str(parameters["host"])
        self._server_port = int(parameters.get("port") or 5432)
        self._parameters = parameters
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.rules: list[Rule] = []
        self.open = asyncio.Event()
        self.refusing = False
        self.delay_seconds = 0.0

    @property
    def dsn(self) -> str:
        """The connection string that was given, by way of the proxy."""
        return self.through(str(self._parameters.get("dbname", "postgres")))

    def through(self, database: str) -> str:
        """The connection string of another database of the server, by way of the proxy."""
        user, password = self._parameters.get("user", "postgres"), self._parameters.get("password")
        login = f"{user}:{password}" if password else f"{user}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def cut(
        self,
        matching: str = COMMIT,
        *,
        when: Moment,
        times: int = 1,
        at_sync: bool = False,
        skip: int = 0,
        within: str = "",
    ) -> Rule:
        """Break the connection at the next statement that matches.

        Args:
            matching: a regular expression, case ignored, searched in the statement's text.
            when: ``before`` the server gets it, or ``after`` it executed it and before the client gets the answer. A
                statement that fails is passed on in any case.
            times: how many times in all, over all connections.
            at_sync: act at the end of the pipeline (its Sync) that runs the statement: there a transaction without
                BEGIN and COMMIT commits.
            skip: let so many matches pass first.
            within: act only if a statement that matches this came before it in the same pipeline.
        """
        return self._add(Rule(matching, when, "cut", times, at_sync, skip, within))

    def hold(
        self,
        matching: str = COMMIT,
        *,
        when: Moment,
        times: int = 1,
        at_sync: bool = False,
        skip: int = 0,
        within: str = "",
    ) -> Rule:
        """Keep the connection open and silent, both ways, at the next statement that matches, until :meth:`release`;
        then all goes on as if nothing had been. The arguments are those of :meth:`cut`."""
        return self._add(Rule(matching, when, "hold", times, at_sync, skip, within))

    def _add(self, rule: Rule) -> Rule:
        self._call(lambda: self.rules.append(rule))
        return rule

    def release(self) -> None:
        """Let the connections go on that a rule holds."""

        def release() -> None:
            for connection in self._connections:
                connection.going.set()

        self._call(release)

    def hang(self) -> None:
        """From now on nothing passes, in new connections too, and nothing is closed: as a network that drops."""
        self._call(self.open.clear)

    def resume(self) -> None:
        """End :meth:`hang` and :meth:`refuse`; what was held back passes now."""

        def resume() -> None:
            self.refusing = False
            self.open.set()

        self._call(resume)

    def refuse(self) -> None:
        """Break all connections, and new ones at once: as a server that is down."""

        def refuse() -> None:
            self.refusing = True
            self._cut_connections()

        self._call(refuse)

    def cut_all(self) -> None:
        """Break all connections; new ones are welcome."""
        self._call(self._cut_connections)

    def delay(self, seconds: float) -> None:
        """Deliver everything so much later, each way."""

        def delay() -> None:
            self.delay_seconds = seconds

        self._call(delay)

    def connections(self) -> int:
        """How many connections are open."""
        return self._call(lambda: len(self._connections))

    def _cut_connections(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def _call(self, function: Callable[[], Result]) -> Result:
        """Run it on the proxy's thread, where all of its state lives."""

        async def run() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(WAIT_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(WAIT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self.open.set()
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the aborted transports close

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            if not self.refusing:
                await connection.run()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two sides is gone, and so shall be the other
        finally:
            connection.abort()
            self._connections.discard(connection)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server."""
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._server_port}")
        return await asyncio.open_connection(self._host, self._server_port)


class _Connection:
    """One client's connection, and ours to the server for it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client_reader = reader
        self.client_writer = writer
        self.server_reader: asyncio.StreamReader
        self.server_writer: asyncio.StreamWriter | None = None
        self.going = asyncio.Event()
        self.going.set()
        self.statements = Statements()
        self.answers: Answers[Rule] = Answers()
        self.armed: Rule | None = None
        self.pipeline: list[str] = []

    def abort(self) -> None:
        for writer in (self.client_writer, self.server_writer):
            if writer is not None:
                writer.transport.abort()

    async def run(self) -> None:
        first = await self._start()
        self.server_reader, self.server_writer = await self.proxy.connect()
        self.server_writer.write(first)
        ways = (
            self._pump(self.client_reader, self.server_writer, self._rule_before),
            self._pump(self.server_reader, self.client_writer, self.answers.tag_answered_by),
        )
        pumps = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _start(self) -> bytes:
        """Refuse encryption, which we could not read; the message that begins the session (or cancels another)."""
        while True:
            length = await self.client_reader.readexactly(4)
            body = await self.client_reader.readexactly(struct.unpack("!I", length)[0] - 4)
            await self.proxy.open.wait()
            code = struct.unpack_from("!I", body)[0]
            if code not in ENCRYPTION_REQUESTS:
                return length + body
            self.client_writer.write(b"N")

    async def _pause(self) -> None:
        if self.proxy.delay_seconds:
            await asyncio.sleep(self.proxy.delay_seconds)
        await self.proxy.open.wait()
        await self.going.wait()

    async def _act(self, rule: Rule) -> None:
        """Do what the rule says. Returns when what was held may go on; does not return when the connection is cut."""
        if rule.action == "cut":
            self.abort()
            rule.note()
            await asyncio.Event().wait()  # until the other pump sees the end, and we are cancelled
        self.going.clear()
        rule.note()
        await self.going.wait()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rule_at: Callable[[bytes], Rule | None],
    ) -> None:
        """Pass messages on, one way; where a rule wants it, what came before the message passes, then the rule acts."""
        framer = Framer()
        while data := await reader.read(CHUNK_BYTES):
            await self._pause()
            passing = bytearray()
            for message in framer.feed(data):
                rule = rule_at(message)
                if rule is not None and rule.take():
                    writer.write(passing)
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    passing.clear()
                    await self._act(rule)
                passing += message
            writer.write(passing)
            await writer.drain()

    def _rule_before(self, message: bytes) -> Rule | None:
        """The rule that acts before the server gets this message; one that acts after is kept for the answer."""
        rule = self._rule_for(message)
        self.answers.expect(message, rule if rule is not None and rule.when == "after" else None)
        return rule if rule is not None and rule.when == "before" else None

    def _rule_for(self, message: bytes) -> Rule | None:
        text = self.statements.text_run_by(message)
        if text is None:
            if message[:1] == b"S":
                self.pipeline.clear()
            if message[:1] != b"S" or self.armed is None:
                return None
            armed, self.armed = self.armed, None
            return armed if armed.wants(None, True) == "now" else None
        before = list(self.pipeline)
        self.pipeline.append(text)
        for rule in self.proxy.rules:
            wish = rule.wants(text, False, before)
            if wish == "now":
                return rule
            if wish == "at sync":
                self.armed = rule
        return None
