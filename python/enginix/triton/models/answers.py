"""Events of the executor → responses of a decoupled model, sent as tokens come."""

from __future__ import annotations

import collections
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enginix.triton.models.channel import Channel, Event
from enginix.triton.models.generation import Chunk, Generation, Order
from enginix.triton.models.request import RequestError

# More steps of the scheduler than these wait to be sent, or as many tokens squared where few requests run.
BEHIND = 4
# Seconds of processor time that the sender may be ahead of its share before it pauses, and its longest pause.
AHEAD = 0.005
LONGEST_PAUSE = 0.1
# Numbers up to this are tensors that are kept.
SMALL = 256


@dataclass
class Running:
    """One request under way.

    Attributes:
        sender: of its responses.
        constant: tensors that all of its responses have.
    """

    generation: Generation
    sender: Any
    constant: list[Any] = field(default_factory=list)


class Answers:
    """Answers a model's requests, by one thread for all of them.

    Args:
        backend: the module ``triton_python_backend_utils``.
        channel: to the executor.
        content: the tensors of a response that are this model's own; the others are those that ``ensemble``
            and ``tensorrt_llm`` have in common.
        period: seconds between two questions whether the clients are still there.
        share: of one processor, at most, that the thread takes while more than a few requests run.
    """

    def __init__(
        self,
        backend: Any,
        channel: Channel,
        content: Callable[[Chunk], list[Any]],
        *,
        period: float,
        share: float,
    ) -> None:
        self._backend, self._channel, self._content = backend, channel, content
        self._period = period
        self._codes = {
            "error": backend.TritonError.INTERNAL,
            "refused": backend.TritonError.INVALID_ARG,
            "full": backend.TritonError.UNAVAILABLE,
        }
        self._constants: dict[tuple[str, Any], Any] = {}
        self._running: dict[str, Running] = {}
        self._budget, self._paused = _Budget(share), False
        self._thread = threading.Thread(target=self._send_all, name="enginix-sender", daemon=True)
        self._thread.start()

    def take(self, requests: Sequence[Any], read: Callable[[Any], Order | None]) -> None:
        """Starts an answer to every request; refuses at once what cannot be served.

        Args:
            read: what a request asks for; ``None`` where it is answered already.
        """
        for request in requests:
            sender = request.get_response_sender()
            try:
                order = read(request)
                if order is None:
                    sender.send(flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                else:
                    self._begin(order, sender, request.request_id())
            except RequestError as e:
                self._fail(sender, str(e), "refused")
            except Exception as e:  # a request must never be left without an answer
                self._fail(sender, f"{type(e).__name__}: {e}", "error")

    def close(self) -> None:
        """Ends the channel and the thread; Triton calls it when no request is in flight."""
        self._channel.close()
        self._thread.join()

    def _begin(self, order: Order, sender: Any, client: str) -> None:
        # Not to be guessed, for whoever knows it may stop the generation.
        number = str(secrets.randbits(63))
        running = Running(Generation(order), sender, [self._integer("prompt_tokens", len(order.prompt))])
        self._running[number] = running
        try:
            self._channel.add(number, order.scheduled(), client)
        except BaseException:
            self._running.pop(number, None)
            raise

    def _send_all(self) -> None:
        next_check = time.monotonic() + self._period
        while True:
            # With nothing running there is nobody to ask about: sleep until an event comes.
            waits = max(0.0, next_check - time.monotonic()) if self._running else None
            events = self._channel.receive(waits)
            if events is None:
                return
            self._handle_all(events)
            if time.monotonic() >= next_check:
                self._cancel_abandoned()
                next_check = time.monotonic() + self._period
            # Few streams get each token as it comes.
            self._paused = self._budget.pause() if len(self._running) > BEHIND else False

    def _handle_all(self, events: Sequence[Event]) -> None:
        """Handles all events that wait.

        A response costs about as much with several tokens as with one. A sender that had to pause, or has
        fallen behind the scheduler, sends the tokens of a request that wait together.
        """
        together = self._paused or len(events) > BEHIND * max(BEHIND, len(self._running))
        left = collections.Counter(e.number for e in events) if together else None
        for event in events:
            more = False
            if left is not None:
                left[event.number] -= 1
                more = left[event.number] > 0
            self._handle(event, more=more)

    def _handle(self, event: Event, *, more: bool) -> None:
        running = self._running.get(event.number)
        if running is None:
            return
        generation = running.generation
        try:
            if event.finish in self._codes:
                generation.done = True
                self._fail(running.sender, event.error or "the executor failed", event.finish)
            elif chunk := generation.push(event.token, event.logprob, event.finish, more=more):
                self._send(running, chunk)
        except Exception as e:
            # This thread serves everyone; one client's failure ends that client's request only.
            self._fail(running.sender, f"{type(e).__name__}: {e}", "error")
            generation.done = True
        if generation.done:
            self._running.pop(event.number, None)
            if event.finish is None:
                self._channel.cancel(event.number)

    def _cancel_abandoned(self) -> None:
        for number, running in list(self._running.items()):
            if running.sender.is_cancelled():
                self._channel.cancel(number)

    def _send(self, running: Running, chunk: Chunk) -> None:
        flags = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if chunk.finish else 0
        response = self._backend.InferenceResponse(self._tensors(running, chunk))
        running.sender.send(response, flags=flags)

    def _tensors(self, running: Running, chunk: Chunk) -> list[Any]:
        order, tensor = running.generation.order, self._backend.Tensor
        outputs = [
            *self._content(chunk),
            self._constant("finish_reason", (chunk.finish or "").encode()),
            self._integer("batch_index", 0),
            self._integer("sequence_index", 0),
            self._integer("completion_tokens", chunk.generated),
            *running.constant,
        ]
        if order.logprobs:
            outputs.append(tensor("cum_log_probs", np.array([[chunk.cumulative]], np.float32)))
            outputs.append(tensor("output_log_probs", np.array(chunk.logprobs, np.float32).reshape(1, 1, -1)))
        if order.return_num_input_tokens:
            outputs.append(self._integer("num_input_tokens", len(order.prompt)))
        if order.return_num_output_tokens:
            outputs.append(self._integer("num_output_tokens", chunk.generated))
        return outputs

    def _integer(self, name: str, value: int) -> Any:
        """An INT32 tensor [1, 1]; small ones are made once, for most responses have the same."""
        if value <= SMALL:
            return self._constant(name, value)
        return self._backend.Tensor(name, np.array([[value]], np.int32))

    def _constant(self, name: str, value: int | bytes) -> Any:
        found = self._constants.get((name, value))
        if found is None:
            kind = np.int32 if isinstance(value, int) else np.object_
            found = self._backend.Tensor(name, np.array([[value]], kind))
            self._constants[name, value] = found
        return found

    def _fail(self, sender: Any, message: str, why: str) -> None:
        error = self._backend.TritonError(message, self._codes[why])
        sender.send(
            self._backend.InferenceResponse(error=error),
            flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )


class _Budget:
    """Keeps the calling thread within a share of a processor."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._spent, self._seen, self._ahead = 0.0, time.monotonic(), 0.0

    def pause(self) -> bool:
        """Sleeps where the thread has taken more than its share; returns whether it did."""
        spent, now = time.thread_time(), time.monotonic()
        self._ahead = max(0.0, self._ahead + spent - self._spent - self._share * (now - self._seen))
        self._spent, self._seen = spent, now
        self._ahead = min(self._ahead, AHEAD + self._share * LONGEST_PAUSE)
        if self._ahead <= AHEAD:
            return False
        time.sleep((self._ahead - AHEAD) / self._share)
        return True
