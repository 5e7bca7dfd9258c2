"""The messages of one run that are in memory and not yet recorded. Pure.

From each sender, on each topic, messages are taken in the order of their numbers, none twice: one that was offered
before is ignored, one that comes too early waits for those before it.
"""

from __future__ import annotations

from collections import deque

from sharded_wf.model.workflow import CANCEL_TOPIC, Message, who_cancels


class Mailbox:
    """Messages that arrived, by topic, in an order that respects each sender's own."""

    __slots__ = ("_arrived", "_early", "_received")

    def __init__(self) -> None:
        self._arrived: dict[str, deque[Message]] = {}
        self._early: dict[tuple[str, str], dict[int, Message]] = {}
        self._received: dict[tuple[str, str], int] = {}

    def remember(self, sender: str, topic: str, seq: int) -> None:
        """The history says that this message was received."""
        key = (_known_as(sender, topic), topic)
        if seq > self._received.get(key, 0):
            self._received[key] = seq

    def accept(self, message: Message) -> bool:
        """Take in an offered message; whether one more can now be taken out."""
        key = (_known_as(message.sender, message.topic), message.topic)
        last = self._received.get(key, 0)
        if message.seq <= last:
            return False
        early = self._early.get(key)
        if message.seq > last + 1:
            if early is None:
                early = self._early[key] = {}
            early[message.seq] = message
            return False
        arrived = self._arrived.get(message.topic)
        if arrived is None:
            arrived = self._arrived[message.topic] = deque()
        following: Message | None = message
        while following is not None:
            arrived.append(following)
            last = following.seq
            following = early.pop(last + 1, None) if early else None
        self._received[key] = last
        return True

    def take(self, topic: str) -> Message | None:
        """The oldest message of a topic, or ``None``."""
        arrived = self._arrived.get(topic)
        return arrived.popleft() if arrived else None

    def has(self, topic: str) -> bool:
        """Whether there is a message of a topic to take."""
        return bool(self._arrived.get(topic))

    def received(self) -> dict[tuple[str, str], int]:
        """The last number that was taken out (or remembered) of each sender and topic."""
        received = dict(self._received)
        for topic, arrived in self._arrived.items():
            for message in arrived:
                received[_known_as(message.sender, topic), topic] -= 1
        return {key: seq for key, seq in received.items() if seq > 0}

    def __len__(self) -> int:
        """How many messages are held."""
        return sum(map(len, self._arrived.values())) + sum(map(len, self._early.values()))


def _known_as(sender: str, topic: str) -> str:
    return who_cancels(sender) if topic == CANCEL_TOPIC else sender
