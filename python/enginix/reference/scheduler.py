"""Continuous batching: many requests, one model, one worker thread.

Each request has its own random numbers. On the CPU a prompt is computed alone, and a decode step computes
every sequence with products of one shape and separate attention, so that tokens do not depend on the rest of
the batch. On GPUs, where waiting prompts are computed together, and between two values of ``max_batch_size``,
tokens may differ where two candidates are equally likely up to rounding.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from enginix.errors import UsageError
from enginix.reference.cache import KeyValueCache
from enginix.reference.sampling import Sampler, Sampling, choose_tokens, log_probability

Finish = Literal["stop", "length", "cancelled", "error"]


class SchedulableModel(Protocol):
    """The interface of :class:`enginix.reference.Executor` that the scheduler uses."""

    @property
    def max_length(self) -> int: ...
    def check_tokens(self, tokens: tuple[int, ...]) -> None: ...
    def new_cache(self, slots: int) -> KeyValueCache: ...
    @property
    def prompt_tokens(self) -> int: ...
    def prefill(self, cache: KeyValueCache, slot: int, tokens: tuple[int, ...]) -> torch.Tensor: ...
    def prefill_all(
        self, cache: KeyValueCache, prompts: dict[int, tuple[int, ...]]
    ) -> dict[int, torch.Tensor]: ...
    def decode(self, cache: KeyValueCache, tokens: dict[int, int]) -> dict[int, torch.Tensor]: ...


@dataclass(frozen=True)
class GenerationRequest:
    """One generation.

    Attributes:
        id: unique among the requests under way.
        prompt: token ids, at least one.
        max_tokens: at most this many new tokens; ``finish`` is then ``length``.
        end_ids: tokens that end the answer; ``finish`` is then ``stop``.
        temperature, top_k, top_p, seed, min_tokens, repetition_penalty: see :class:`sampling.Sampling`.
        logprobs: events carry the log-probability of their token.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    logprobs: bool = False

    def sampling(self) -> Sampling:
        """Return the checked sampling rules."""
        return Sampling(
            self.temperature, self.top_k, self.top_p, self.seed, self.min_tokens, self.repetition_penalty
        )


@dataclass(frozen=True)
class GenerationEvent:
    """One step of one request.

    Attributes:
        id: the request's.
        token: the new token, with ``stop`` the end token itself; ``None`` when cancelled or failed.
        logprob: natural logarithm of the model's probability of ``token``, if asked for.
        finish: why this is the last event, or ``None``.
        error: the failure, when ``finish`` is ``error``.
    """

    id: str
    token: int | None
    logprob: float | None
    finish: Finish | None
    error: str | None = None


Sink = Callable[[GenerationEvent], None]


class _Sequence:
    def __init__(self, request: GenerationRequest, sink: Sink) -> None:
        self.request, self.sink = request, sink
        self.sampler = Sampler(request.sampling(), request.prompt, request.end_ids)
        self.last = 0
        self.added = time.monotonic()

    def accept(
        self, token: int | FloatingPointError, logits: torch.Tensor, max_length: int
    ) -> GenerationEvent:
        """Return the event of a token that was chosen from logits [vocab_size]."""
        if isinstance(token, FloatingPointError):
            raise token
        request, self.last = self.request, token
        finish: Finish | None = None
        if self.last in request.end_ids:
            finish = "stop"
        elif (
            self.sampler.count >= request.max_tokens or len(request.prompt) + self.sampler.count >= max_length
        ):
            finish = "length"
        logprob = log_probability(logits, self.last) if request.logprobs else None
        return GenerationEvent(request.id, self.last, logprob, finish)


class Scheduler:
    """Runs requests on a model in one worker thread; every method may be called from any thread.

    A sink is called from the worker thread, in order, and gets exactly one event with ``finish``. A sink that
    raises cancels its request. A step that raises fails the requests in it; the worker then continues.

    Args:
        model: the executor, for the scheduler's exclusive use.
        max_batch_size: sequences computed together.
    """

    def __init__(self, model: SchedulableModel, max_batch_size: int = 8) -> None:
        if max_batch_size < 1:
            raise UsageError(f"max_batch_size is {max_batch_size}", fix="at least 1")
        self._model, self._slots = model, max_batch_size
        self._cache = model.new_cache(max_batch_size)
        self._wake = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._active: dict[int, _Sequence] = {}
        self._ids: set[str] = set()
        self._cancelled: set[str] = set()
        self._closed = False
        self._admitted, self._waited = 0, 0.0
        #: Called by the worker thread after all sinks of a step, for sinks that report a step together.
        self.after_step: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="enginix-scheduler", daemon=True)
        self._thread.start()

    def add(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request and return at once.

        Raises:
            UsageError: impossible prompt, options out of range, an id under way, or the scheduler is closed.
        """
        self._model.check_tokens(request.prompt)
        if request.max_tokens < 1:
            raise UsageError(f"max_tokens is {request.max_tokens}", fix="at least 1")
        if len(request.prompt) >= self._model.max_length:
            raise UsageError(
                f"prompt of {len(request.prompt)} tokens leaves no tokens for an answer",
                fix=f"prompt and answer together are at most {self._model.max_length} tokens",
            )
        sequence = _Sequence(request, sink)
        with self._wake:
            if self._closed:
                raise UsageError("the scheduler is closed")
            if request.id in self._ids:
                raise UsageError(f"request id {request.id!r} is under way already", fix="use unique ids")
            self._ids.add(request.id)
            self._waiting.append(sequence)
            self._wake.notify()

    def cancel(self, request_id: str) -> bool:
        """Cancel a request, whose sink then gets ``cancelled``; return False if it is not under way."""
        with self._wake:
            if request_id not in self._ids:
                return False
            self._cancelled.add(request_id)
            self._wake.notify()
            return True

    def close(self, timeout: float | None = None) -> None:
        """Cancel all requests and wait for the worker thread. May be called twice, but not from a sink."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout)

    @property
    def load(self) -> tuple[int, int]:
        """Return the numbers of computed and of waiting requests."""
        with self._wake:
            return len(self._active), len(self._waiting)

    @property
    def waits(self) -> tuple[int, float]:
        """Return the number of requests that got a place, and the seconds that they waited for it."""
        with self._wake:
            return self._admitted, self._waited

    def _end(self, sequence: _Sequence, finish: Finish, error: str | None = None) -> None:
        self._emit(sequence, GenerationEvent(sequence.request.id, None, None, finish, error))

    def _emit(self, sequence: _Sequence, event: GenerationEvent) -> bool:
        """Pass an event to its sink; return whether the request continues."""
        if event.finish is not None:
            # Removed before the sink is called, so that the sink may reuse the id.
            with self._wake:
                self._ids.discard(event.id)
                self._cancelled.discard(event.id)
        try:
            sequence.sink(event)
        except Exception:
            # The listener is gone.
            with self._wake:
                if event.finish is None:
                    self._ids.discard(event.id)
                    self._cancelled.discard(event.id)
            return False
        return event.finish is None

    def _take_cancelled(self) -> list[_Sequence]:
        """Remove cancelled requests, or all of them when closed; called with the lock held."""
        cancelled = [s for s in self._waiting if self._closed or s.request.id in self._cancelled]
        if cancelled:
            self._waiting = deque(s for s in self._waiting if s not in cancelled)
        for slot, sequence in list(self._active.items()):
            if self._closed or sequence.request.id in self._cancelled:
                cancelled.append(self._active.pop(slot))
        return cancelled

    def _admit(self) -> dict[int, _Sequence]:
        """Return slot → waiting request: one, and as many more as the model computes together."""
        admitted: dict[int, _Sequence] = {}
        token_budget = self._model.prompt_tokens
        for slot in range(self._slots):
            if not self._waiting or slot in self._active:
                continue
            token_budget -= len(self._waiting[0].request.prompt)
            if admitted and token_budget < 0:
                break
            admitted[slot] = self._waiting.popleft()
            self._admitted += 1
            self._waited += time.monotonic() - admitted[slot].added
        return admitted

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._waiting or self._active):
                    self._wake.wait()
                cancelled = self._take_cancelled()
                admitted = {} if self._closed else self._admit()
                closed = self._closed
            for sequence in cancelled:
                self._end(sequence, "cancelled")
            if cancelled:
                self.after_step()
            if closed:
                return
            # Some prompts, then one token for each request: bursts of prompts do not stall running answers.
            if admitted:
                self._prefill_all(admitted)
                self.after_step()
            if self._active:
                self._decode()
                self.after_step()

    def _prefill_all(self, admitted: dict[int, _Sequence]) -> None:
        logits_by_slot: dict[int, torch.Tensor] = {}
        if len(admitted) > 1:
            # Requests that fail together are retried one by one, so that only the faulty one ends.
            with contextlib.suppress(Exception):
                logits_by_slot = self._model.prefill_all(
                    self._cache, {slot: s.request.prompt for slot, s in admitted.items()}
                )
        for slot, sequence in admitted.items():
            self._prefill(slot, sequence, logits_by_slot.get(slot))

    def _prefill(self, slot: int, sequence: _Sequence, logits: torch.Tensor | None) -> None:
        try:
            if logits is None:
                logits = self._model.prefill(self._cache, slot, sequence.request.prompt)
            (token,) = choose_tokens(logits[None], [sequence.sampler])
            event = sequence.accept(token, logits, self._model.max_length)
        except Exception as e:
            self._end(sequence, "error", f"{type(e).__name__}: {e}")
            return
        if self._emit(sequence, event):
            with self._wake:
                self._active[slot] = sequence

    def _decode(self) -> None:
        batch = dict(self._active)
        try:
            logits_by_slot = self._model.decode(self._cache, {slot: s.last for slot, s in batch.items()})
            logits = torch.stack([logits_by_slot[slot] for slot in batch])
            tokens = choose_tokens(logits, [s.sampler for s in batch.values()])
        except Exception as e:
            with self._wake:
                self._active.clear()
            for sequence in batch.values():
                self._end(sequence, "error", f"{type(e).__name__}: {e}")
            return
        for row, (slot, sequence) in enumerate(batch.items()):
            try:
                event = sequence.accept(tokens[row], logits[row], self._model.max_length)
                goes_on = self._emit(sequence, event)
            except Exception as e:
                self._end(sequence, "error", f"{type(e).__name__}: {e}")
                goes_on = False
            if not goes_on:
                with self._wake:
                    self._active.pop(slot, None)
