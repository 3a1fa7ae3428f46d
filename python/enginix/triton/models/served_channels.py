"""The generations of all channels, in the executor's process, and the ends of channels there."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enginix.errors import UsageError
from enginix.triton.models.channel import LATER, ChannelEvent

# Seconds that one step of the scheduler may take: the longest prompt on a slow processor takes minutes.
LONGEST_STEP = 600.0


class Generations:
    """The generations of all channels in the executor.

    Args:
        scheduler: the reference executor's scheduler.
        request: makes the scheduler's request from an order's fields.
        capacity: largest number of generations, running and waiting; 0 is no limit.
    """

    def __init__(self, scheduler: Any, request: Callable[..., Any], capacity: int = 0) -> None:
        self._scheduler, self._request, self._capacity = scheduler, request, capacity
        self._lock = threading.Lock()
        self._clients: dict[str, str] = {}
        # When the scheduler last did a step, or got work after it had none.
        self._moved = time.monotonic()
        # Channels with events in the scheduler's current step; used by the scheduler's thread alone.
        self._heard: set[ServedChannel] = set()
        scheduler.after_step = self._tell

    def add(self, number: str, order: Mapping[str, Any], client: str, channel: ServedChannel) -> None:
        """Start a generation of a channel."""
        with self._lock:
            full = self._capacity and len(self._clients) >= self._capacity
            if not full:
                if not self._clients:
                    self._moved = time.monotonic()
                self._clients[number] = client
        if full:
            reason = f"{self._capacity} requests are running or waiting already; {LATER}"
            channel.tell([ChannelEvent(number, None, None, "full", reason)])
            return
        step = channel.step

        def heard(event: Any) -> None:
            if event.finish is not None:
                self._forget(number)
            step.append(ChannelEvent(number, event.token, event.logprob, event.finish, event.error))
            self._heard.add(channel)

        try:
            sets = {"prompt": tuple(order["prompt"]), "end_ids": frozenset(order["end_ids"])}
            self._scheduler.add(self._request(id=number, **{**order, **sets}), heard)
        except Exception as e:  # a request must never be left without an answer
            self._forget(number)
            refused = isinstance(e, UsageError)
            reason = str(e) if refused else f"{type(e).__name__}: {e}"
            channel.tell([ChannelEvent(number, None, None, "refused" if refused else "error", reason)])

    def cancel(self, number: str) -> None:
        """Ask the scheduler to end a generation."""
        self._scheduler.cancel(number)

    def stop(self, client: str) -> None:
        """End all generations with that name of a client's."""
        with self._lock:
            numbers = [number for number, name in self._clients.items() if client and name == client]
        for number in numbers:
            self._scheduler.cancel(number)

    def is_stuck(self) -> bool:
        """Tell whether requests are under way, and the scheduler has not ended a step for long."""
        with self._lock:
            return bool(self._clients) and time.monotonic() - self._moved > LONGEST_STEP

    def close(self) -> None:
        """Close the scheduler, which ends all generations."""
        self._scheduler.close()

    def _forget(self, number: str) -> None:
        with self._lock:
            self._clients.pop(number, None)

    def _tell(self) -> None:
        """Send one message for each step and channel: each wakes a thread, which takes the interpreter."""
        self._moved = time.monotonic()
        for channel in self._heard:
            channel.tell(channel.step)
            channel.step.clear()
        self._heard.clear()


class ServedChannel(ABC):
    """One :class:`Channel`'s end in the executor's process.

    Attributes:
        step: events of the scheduler's current step.
    """

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._numbers: set[str] = set()
        self.step: list[ChannelEvent] = []

    def add(self, number: str, order: Mapping[str, Any], client: str) -> None:
        self._numbers.add(number)
        self._generations.add(number, order, client, self)

    def cancel(self, number: str) -> None:
        if number in self._numbers:
            self._generations.cancel(number)

    def cancel_all(self) -> None:
        """End the running generations."""
        for number in list(self._numbers):
            self._generations.cancel(number)

    def tell(self, events: Sequence[ChannelEvent]) -> None:
        """Pass events on; the scheduler's thread calls it, too, and must not wait."""
        self._numbers.difference_update([e.number for e in events if e.finish is not None])
        self._hand_over(list(events))

    @abstractmethod
    def _hand_over(self, events: list[ChannelEvent]) -> None: ...


class LocalChannel(ServedChannel):
    """A channel within the executor's process."""

    def __init__(self, generations: Generations) -> None:
        super().__init__(generations)
        # None closes.
        self._events: queue.SimpleQueue[list[ChannelEvent] | None] = queue.SimpleQueue()
        self._closed = False

    def _hand_over(self, events: list[ChannelEvent]) -> None:
        self._events.put(events)

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        received: list[ChannelEvent] = []
        with contextlib.suppress(queue.Empty):
            events = None if self._closed else self._events.get(timeout=timeout)
            while events is not None:
                received += events
                events = self._events.get_nowait()
            # Events from before the end are still returned.
            self._closed = True
        return None if self._closed and not received else received

    def close(self) -> None:
        self.cancel_all()
        self._events.put(None)
