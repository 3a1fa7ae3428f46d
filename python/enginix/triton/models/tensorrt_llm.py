"""tensorrt_llm for kind ``reference``: the checkpoint executed by plain PyTorch behind TensorRT-LLM's
tensors.

Decoupled: Triton hands requests over and goes on; responses are sent as tokens come. The scheduler's worker
    thread
computes, one sender thread here talks to Triton and asks it now and then whether clients are still there.
"""

from __future__ import annotations

import collections
import contextlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginix.errors import UsageError
from enginix.triton.models.generation import Chunk, Generation, Limits, read
from enginix.triton.models.request import Inputs, RequestError, boolean, integers, parameter, required

# More steps of the scheduler than these wait to be sent, or as many tokens squared where few requests run.
BEHIND = 4
# The sender takes at most this share of one processor: it shares the interpreter with the executor, and what
# it sends costs the server and postprocessing several times as much again.
SHARE = 1 / 16
# Seconds of processor time that it may be ahead of its share before it pauses, and its longest pause.
AHEAD = 0.005
LONGEST_PAUSE = 0.1
# Numbers up to this are tensors that are kept.
SMALL = 256


@dataclass
class _Running:
    generation: Generation
    sender: Any
    client_id: str
    constant: list[Any]


class TensorrtLlm:
    """Serves ``tensorrt_llm``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
        scheduler: makes the scheduler of a model directory; the reference executor's by default. Takes
            (checkpoint, device, max_batch_size) and returns (scheduler, request class).
    """

    def __init__(
        self,
        args: dict[str, str],
        backend: Any,
        scheduler: Callable[[Path, str, int], tuple[Any, Any]] | None = None,
    ) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        self._limits = Limits(
            max_seq_len=int(parameter(config, "max_seq_len") or 0),
            max_tokens=int(parameter(config, "max_tokens_limit") or 0),
            end_ids=frozenset(integers(config, "end_ids")),
            exclude_input=boolean(config, "exclude_input_in_output", True),
        )
        max_batch_size = int(config["max_batch_size"])
        waiting = int(parameter(config, "max_queue_size") or 0)
        self._capacity = max_batch_size + waiting if waiting else 0
        self._period = int(parameter(config, "cancellation_check_period_ms") or 100) / 1000
        self._scheduler, self._request = (scheduler or _reference_scheduler)(
            Path(required(config, "gpt_model_path")), parameter(config, "device") or "cpu", max_batch_size
        )
        self._constants: dict[tuple[str, Any], Any] = {}
        self._running: dict[str, _Running] = {}
        self._budget, self._paused = _Budget(), False
        # Events of the scheduler, then None at the end.
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="enginix-sender", daemon=True)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Hands every request to the scheduler; refuses at once what cannot be served."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except (RequestError, UsageError) as e:
                self._fail(sender, str(e), self._backend.TritonError.INVALID_ARG)
            except _Full as e:
                self._fail(sender, str(e), self._backend.TritonError.UNAVAILABLE)
            except Exception as e:  # a request must never be left without an answer
                self._fail(sender, f"{type(e).__name__}: {e}", self._backend.TritonError.INTERNAL)

    def close(self) -> None:
        """Stops the scheduler and the sender thread; Triton calls it when no request is in flight."""
        self._scheduler.close()
        self._events.put(None)
        self._thread.join()

    def _accept(self, request: Any, sender: Any) -> None:
        inputs = Inputs(request, self._backend)
        if inputs.scalar("stop"):
            self._stop(request.request_id())
            sender.send(flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        if self._capacity and len(self._running) >= self._capacity:
            raise _Full(f"{self._capacity} requests are running or waiting already; try again later")
        order = read(inputs, self._limits)
        # Not to be guessed, for whoever knows it may stop the generation.
        number = str(secrets.randbits(63))
        wanted = self._request(
            id=number,
            prompt=order.prompt,
            max_tokens=order.max_tokens,
            end_ids=order.end_ids,
            temperature=order.temperature,
            top_k=order.top_k,
            top_p=order.top_p,
            seed=order.seed,
            min_tokens=order.min_tokens,
            repetition_penalty=order.repetition_penalty,
            logprobs=order.logprobs,
        )
        constant = [
            self._backend.Tensor("generation_id", np.array([[int(number)]], np.uint64)),
            self._integer("prompt_tokens", len(order.prompt)),
        ]
        self._running[number] = _Running(Generation(order), sender, request.request_id(), constant)
        try:
            self._scheduler.add(wanted, self._events.put)
        except BaseException:
            self._running.pop(number, None)
            raise

    def _send_all(self) -> None:
        next_check = time.monotonic() + self._period
        while True:
            try:
                # With nothing running there is nobody to ask about: sleep until an event comes.
                event = self._events.get(
                    timeout=max(0.0, next_check - time.monotonic()) if self._running else None
                )
            except queue.Empty:
                event = False
            if event is None:
                return
            if event and not self._handle_all(event):
                return
            if time.monotonic() >= next_check:
                self._cancel_abandoned()
                next_check = time.monotonic() + self._period
            # Few streams get each token as it comes.
            self._paused = self._budget.pause() if len(self._running) > BEHIND else False

    def _handle_all(self, event: Any) -> bool:
        """Handles an event and all that wait behind it; returns whether to go on.

        A response costs about as much with several tokens as with one. A sender that had to pause, or has
        fallen behind the scheduler, sends the tokens of a request that wait together.
        """
        waiting, end = [event], False
        with contextlib.suppress(queue.Empty):
            while not end:
                found = self._events.get_nowait()
                if found is None:
                    end = True
                else:
                    waiting.append(found)
        together = self._paused or len(waiting) > BEHIND * max(BEHIND, len(self._running))
        left = collections.Counter(e.id for e in waiting if together)
        for found in waiting:
            left[found.id] -= 1
            self._handle(found, more=left[found.id] > 0)
        return not end

    def _handle(self, event: Any, *, more: bool) -> None:
        running = self._running.get(event.id)
        if running is None:
            return
        try:
            if event.finish == "error":
                running.generation.done = True
                message = event.error or "the executor failed"
                self._fail(running.sender, message, self._backend.TritonError.INTERNAL)
            elif chunk := running.generation.push(event.token, event.logprob, event.finish, more=more):
                self._send(running, chunk)
        except Exception as e:
            # The sender thread serves everyone; one client's failure ends that client's request only.
            self._fail(running.sender, f"{type(e).__name__}: {e}", self._backend.TritonError.INTERNAL)
            running.generation.done = True
        if running.generation.done:
            self._running.pop(event.id, None)
            if event.finish is None:
                self._scheduler.cancel(event.id)

    def _cancel_abandoned(self) -> None:
        for number, running in list(self._running.items()):
            if running.sender.is_cancelled():
                self._scheduler.cancel(number)

    def _stop(self, number: str) -> None:
        """A request with ``stop`` ends the one of the same id: a client's own, or a generation_id.

        postprocessing sends the latter: an ensemble does not pass a client's cancellation on to a step
            under way.
        """
        for found, running in list(self._running.items()):
            if number and number in (found, running.client_id):
                self._scheduler.cancel(found)

    def _send(self, running: _Running, chunk: Chunk) -> None:
        tensors = self._tensors(running, chunk)
        flags = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if chunk.finish else 0
        running.sender.send(self._backend.InferenceResponse(tensors), flags=flags)

    def _tensors(self, running: _Running, chunk: Chunk) -> list[Any]:
        order, tensor = running.generation.order, self._backend.Tensor
        outputs = [
            tensor("output_ids", np.array([[chunk.ids]], np.int32)),
            self._integer("sequence_length", len(chunk.ids)),
            tensor("context_ids", np.array([chunk.context], np.int32)),
            self._constant("is_final", chunk.finish is not None),
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

    def _constant(self, name: str, value: bool | int | bytes) -> Any:
        found = self._constants.get((name, value))
        if found is None:
            kind = {bool: np.bool_, int: np.int32, bytes: np.object_}[type(value)]
            found = self._backend.Tensor(name, np.array([[value]], kind))
            self._constants[name, value] = found
        return found

    def _fail(self, sender: Any, message: str, code: int) -> None:
        error = self._backend.TritonError(message, code)
        sender.send(
            self._backend.InferenceResponse(error=error),
            flags=self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )


class _Budget:
    """Keeps the calling thread within ``SHARE`` of a processor."""

    def __init__(self) -> None:
        self._spent, self._seen, self._ahead = 0.0, time.monotonic(), 0.0

    def pause(self) -> bool:
        """Sleeps where the thread has taken more than its share; returns whether it did."""
        spent, now = time.thread_time(), time.monotonic()
        self._ahead = max(0.0, self._ahead + spent - self._spent - SHARE * (now - self._seen))
        self._spent, self._seen = spent, now
        self._ahead = min(self._ahead, AHEAD + SHARE * LONGEST_PAUSE)
        if self._ahead <= AHEAD:
            return False
        time.sleep((self._ahead - AHEAD) / SHARE)
        return True


class _Full(Exception):
    """As many requests as the server takes are in already."""


def _reference_scheduler(checkpoint: Path, device: str, max_batch_size: int) -> tuple[Any, Any]:
    # torch is needed here and nowhere else in the repository's models.
    from enginix.reference import Executor
    from enginix.reference.scheduler import Request, Scheduler

    return Scheduler(Executor.load(checkpoint, device=device), max_batch_size), Request
