"""Convert the executor's events to responses of a decoupled model, and send them as tokens come."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enginix.triton.models.channel import FAILED, LATER, Channel, ChannelEvent
from enginix.triton.models.generation import Chunk, Generation, Order
from enginix.triton.models.heartbeat import PERIOD, HeartbeatFile
from enginix.triton.models.request import RequestError
from enginix.triton.models.server_metrics import AnswerTimes, ServerMetrics

# With at most so many running requests, each token is sent as it comes, unless more steps than these wait.
FEW = 4
BEHIND = 4
# Longest time between two responses of a stream, in seconds, whatever they cost.
LONGEST_PAUSE = 0.1
# Tensors of numbers up to this are cached.
SMALL = 256


@dataclass
class RunningRequest:
    """One running request.

    Attributes:
        sender: sender of its responses.
        constant: tensors that all of its responses have.
        times: times of its answer.
    """

    generation: Generation
    sender: Any
    constant: list[Any] = field(default_factory=list)
    times: AnswerTimes = field(default_factory=AnswerTimes)


class ResponseSender:
    """Answers a model's requests, by one thread for all of them.

    Args:
        backend: the module ``triton_python_backend_utils``.
        channel: channel to the executor.
        content: returns the tensors of a response that are this model's own, besides those that ``ensemble``
            and ``tensorrt_llm`` share.
        period: seconds between two checks whether the clients are still connected.
        share: approximate share of one processor that the thread takes while more than a few requests run.
        metrics: the model's metrics; ``None`` counts nothing.
        heartbeat: the sign of life of this process.
    """

    def __init__(
        self,
        backend: Any,
        channel: Channel,
        content: Callable[[Chunk], list[Any]],
        *,
        period: float,
        share: float,
        metrics: ServerMetrics | None = None,
        heartbeat: HeartbeatFile | None = None,
    ) -> None:
        self._backend, self._channel, self._content = backend, channel, content
        self._period, self._metrics, self._heartbeat = period, metrics, heartbeat
        self._codes = {
            "error": backend.TritonError.INTERNAL,
            "refused": backend.TritonError.INVALID_ARG,
            "full": backend.TritonError.UNAVAILABLE,
        }
        self._constants: dict[tuple[str, Any], Any] = {}
        self._running: dict[str, RunningRequest] = {}
        # Streams with tokens to send together.
        self._held: set[str] = set()
        self._pace = _Pace(share)
        self._thread = threading.Thread(target=self._run, name="enginix-sender", daemon=True)
        self._thread.start()

    def take(self, requests: Sequence[Any], read: Callable[[Any], Order | None]) -> None:
        """Start an answer to every request; refuse invalid requests at once.

        Args:
            read: returns the order of a request; ``None`` if the request is answered already.
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
        """End the channel and the thread; Triton calls it when no request is in flight."""
        self._channel.close()
        self._thread.join()
        if self._metrics is not None:
            self._metrics.close()

    def _begin(self, order: Order, sender: Any, client: str) -> None:
        # Unpredictable: a client that knows the number could stop the generation.
        number = str(secrets.randbits(63))
        running = RunningRequest(
            Generation(order), sender, [self._integer("prompt_tokens", len(order.prompt))]
        )
        self._running[number] = running
        try:
            self._channel.add(number, order.scheduled(), client)
        except BaseException:
            self._running.pop(number, None)
            raise

    def _run(self) -> None:
        try:
            self._send_all()
        except BaseException:
            # Without this thread no request is answered; end the process, which enginix serve notices.
            traceback.print_exc()
            os._exit(1)

    def _send_all(self) -> None:
        next_check = time.monotonic() + self._period
        while True:
            events = self._channel.receive(min(PERIOD, self._pause(next_check)))
            if events is None:
                return
            if self._heartbeat is not None:
                self._heartbeat.beat()
            few = len(self._running) <= FEW
            # A response with several tokens costs about as much as one with a single token.
            hold = not few or len(events) > BEHIND * max(FEW, len(self._running))
            for event in events:
                self._handle(event, hold=hold)
            if self._held and (few or time.monotonic() >= self._pace.next):
                self._flush()
            if time.monotonic() >= next_check:
                self._cancel_abandoned()
                next_check = time.monotonic() + self._period

    def _pause(self, next_check: float) -> float:
        """Return the seconds until there is work that does not depend on the executor's events."""
        until = min(next_check, self._pace.next) if self._held else next_check
        return max(0.0, until - time.monotonic())

    def _handle(self, event: ChannelEvent, *, hold: bool) -> None:
        running = self._running.get(event.number)
        if running is None:
            return
        generation = running.generation

        def heard() -> None:
            if event.token is not None:
                running.times.see_token()
            if event.finish in self._codes:
                generation.done = True
                self._fail(running.sender, event.error or "the executor failed", event.finish)
            elif chunk := generation.push(event.token, event.logprob, event.finish, hold=hold):
                self._send(running, chunk)
            elif hold and generation.order.streaming:
                self._held.add(event.number)

        self._guarded(running, heard)
        if generation.done:
            self._running.pop(event.number, None)
            self._held.discard(event.number)
            if event.finish is None:
                self._channel.cancel(event.number)

    def _flush(self) -> None:
        """Send the tokens that streams hold back."""
        held_numbers, self._held = self._held, set()
        for number in held_numbers:
            running = self._running[number]

            def shown(running: RunningRequest = running) -> None:
                if chunk := running.generation.flush():
                    self._send(running, chunk)

            if not self._guarded(running, shown):
                self._running.pop(number)
                self._channel.cancel(number)
        self._pace.spent()

    def _guarded(self, running: RunningRequest, act: Callable[[], None]) -> bool:
        """Run an action for a request; its failure ends that request only, as the thread serves all."""
        try:
            act()
        except Exception as e:
            running.generation.done = True
            self._fail(running.sender, f"{type(e).__name__}: {e}", "error")
            return False
        return True

    def _cancel_abandoned(self) -> None:
        for number, running in self._running.copy().items():
            # This asks the server, which may fail as sending may.
            with contextlib.suppress(Exception):
                if running.sender.is_cancelled():
                    self._channel.cancel(number)

    def _send(self, running: RunningRequest, chunk: Chunk) -> None:
        flags = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if chunk.finish else 0
        response = self._backend.InferenceResponse(self._tensors(running, chunk))
        running.sender.send(response, flags=flags)
        if chunk.finish and self._metrics is not None:
            prompt = len(running.generation.order.prompt)
            self._metrics.count_answer(chunk.finish, prompt, chunk.generated, running.times)

    def _tensors(self, running: RunningRequest, chunk: Chunk) -> list[Any]:
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
        """Return an INT32 tensor [1, 1]; those of small numbers are cached, as most responses share them."""
        if value <= SMALL:
            return self._constant(name, value)
        return self._backend.Tensor(name, np.array([[value]], np.int32))

    def _constant(self, name: str, value: int | bytes) -> Any:
        tensor = self._constants.get((name, value))
        if tensor is None:
            kind = np.int32 if isinstance(value, int) else np.object_
            tensor = self._backend.Tensor(name, np.array([[value]], kind))
            self._constants[name, value] = tensor
        return tensor

    def _fail(self, sender: Any, message: str, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.count_failure(reason)
        if reason == "error" and not message.endswith(LATER):
            message = f"{message} ({FAILED})"
        error = self._backend.TritonError(message, self._codes[reason])
        # If Triton lost the previous response, the request is closed already.
        with contextlib.suppress(Exception):
            sender.send(
                self._backend.InferenceResponse(error=error),
                flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )


class _Pace:
    """Spreads the calling thread's work over time, so that it takes a share of a processor.

    Attributes:
        next: time when the thread may go on, by ``time.monotonic``.
    """

    def __init__(self, share: float) -> None:
        self._share, self._before, self.next = share, 0.0, 0.0

    def spent(self) -> None:
        """Count the processor time since the last call."""
        now = time.thread_time()
        self.next = time.monotonic() + min(LONGEST_PAUSE, (now - self._before) / self._share)
        self._before = now
