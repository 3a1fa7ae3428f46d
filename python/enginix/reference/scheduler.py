"""Continuous batching: many requests, one model, one worker thread.

Each request has its own random numbers. On the CPU a prompt is computed alone, and a decode step computes
every sequence with products of one shape and separate attention, so that tokens do not depend on the rest of
the batch. On GPUs, where waiting prompts are computed together, and between two values of ``max_batch_size``,
tokens may differ where two candidates are equally likely up to rounding.

On GPUs tokens are chosen on the device, and the next step is submitted before the host reads them: what a
sequence computes beyond its end token is dropped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from enginix.errors import UsageError
from enginix.reference.batched_sampling import Choice, choose_tokens_on_device
from enginix.reference.cache import KeyValueCache, move_to_device
from enginix.reference.sampling import Sampler, Sampling, choose_tokens, log_probability

Finish = Literal["stop", "length", "cancelled", "error"]


class RequestLimits(Protocol):
    """What a model says of the requests that it takes."""

    @property
    def max_length(self) -> int: ...

    def check_tokens(self, tokens: tuple[int, ...]) -> None: ...


class SchedulableModel(RequestLimits, Protocol):
    """The interface of :class:`enginix.reference.Executor` that the scheduler uses."""

    steps_ahead: int
    prompt_tokens: int
    piece_tokens: int

    def new_cache(self, slots: int) -> KeyValueCache: ...
    def prefill(
        self, cache: KeyValueCache, slot: int, tokens: tuple[int, ...], *, extend: bool = False
    ) -> torch.Tensor: ...
    def prefill_all(
        self, cache: KeyValueCache, prompts: dict[int, tuple[int, ...]]
    ) -> dict[int, torch.Tensor]: ...
    def decode(self, cache: KeyValueCache, tokens: dict[int, int]) -> dict[int, torch.Tensor]: ...
    def decode_stored(self, cache: KeyValueCache, active: list[int]) -> torch.Tensor: ...


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


class ScheduledSequence:
    """A request under way, with the random numbers and the state of its answer."""

    def __init__(self, request: GenerationRequest, sink: Sink) -> None:
        self.request, self.sink = request, sink
        self.sampler = Sampler(request.sampling(), request.prompt, request.end_ids)
        self.last = 0
        self.added = time.monotonic()
        self.accepted = 0
        self.stored = 0  # tokens of a long prompt that are computed

    def _is_whole(self, count: int, max_length: int) -> bool:
        return count >= self.request.max_tokens or len(self.request.prompt) + count >= max_length

    def continues(self, max_length: int) -> bool:
        """Return whether another token may be computed; the tokens under way may have ended the answer."""
        return not self._is_whole(self.sampler.count, max_length)

    def accept(
        self, token: int | FloatingPointError, logprob: float | None, max_length: int
    ) -> GenerationEvent:
        """Return the event of a token that was chosen."""
        if isinstance(token, FloatingPointError):
            raise token
        self.last, self.accepted = token, self.accepted + 1
        finish: Finish | None = None
        if token in self.request.end_ids:
            finish = "stop"
        elif self._is_whole(self.accepted, max_length):
            finish = "length"
        return GenerationEvent(self.request.id, token, logprob if self.request.logprobs else None, finish)


class RequestScheduler(ABC):
    """Runs requests in one worker thread; every method may be called from any thread.

    A sink is called from the worker thread, in order, and gets exactly one event with ``finish``. A sink that
    raises cancels its request. A step that raises fails the requests in it; the worker then continues.

    Args:
        limits: of the model, which is for the scheduler's exclusive use.
        max_batch_size: sequences computed together.
    """

    def __init__(self, limits: RequestLimits, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise UsageError(f"max_batch_size is {max_batch_size}", fix="at least 1")
        self._limits, self._slots = limits, max_batch_size
        self._wake = threading.Condition()
        self._waiting: deque[ScheduledSequence] = deque()
        self._active: dict[int, ScheduledSequence] = {}
        self._filling: dict[int, ScheduledSequence] = {}  # their prompts are computed piece by piece
        self._ids: set[str] = set()
        self._cancelled: set[str] = set()
        self._closed = False
        self._admitted, self._waited = 0, 0.0
        #: Called by the worker thread after all sinks of a step, for sinks that report a step together.
        self.after_step: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="enginix-scheduler", daemon=True)
        self._thread.start()

    @abstractmethod
    def _admit(self) -> dict[int, ScheduledSequence]:
        """Return slot → waiting request that gets a place now; called with the lock held."""

    @abstractmethod
    def _compute(self, admitted: dict[int, ScheduledSequence]) -> None:
        """Compute tokens of the admitted and the running requests."""

    def add(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request and return at once.

        Raises:
            UsageError: impossible prompt, options out of range, an id under way, or the scheduler is closed.
        """
        self._limits.check_tokens(request.prompt)
        if request.max_tokens < 1:
            raise UsageError(f"max_tokens is {request.max_tokens}", fix="at least 1")
        if len(request.prompt) >= self._limits.max_length:
            raise UsageError(
                f"prompt of {len(request.prompt)} tokens leaves no tokens for an answer",
                fix=f"prompt and answer together are at most {self._limits.max_length} tokens",
            )
        sequence = ScheduledSequence(request, sink)
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
            return len(self._active) + len(self._filling), len(self._waiting)

    @property
    def waits(self) -> tuple[int, float]:
        """Return the number of requests that got a place, and the seconds that they waited for it."""
        with self._wake:
            return self._admitted, self._waited

    def _end(self, sequence: ScheduledSequence, finish: Finish, error: str | None = None) -> None:
        self._emit(sequence, GenerationEvent(sequence.request.id, None, None, finish, error))

    def _emit(self, sequence: ScheduledSequence, event: GenerationEvent) -> bool:
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

    def _take_cancelled(self) -> list[ScheduledSequence]:
        """Remove cancelled requests, or all of them when closed; called with the lock held."""
        cancelled = [s for s in self._waiting if self._closed or s.request.id in self._cancelled]
        if cancelled:
            self._waiting = deque(s for s in self._waiting if s not in cancelled)
        for computed in (self._active, self._filling):
            for slot, sequence in list(computed.items()):
                if self._closed or sequence.request.id in self._cancelled:
                    cancelled.append(computed.pop(slot))
        return cancelled

    def _place(self) -> ScheduledSequence:
        """Take the next waiting request; called with the lock held."""
        sequence = self._waiting.popleft()
        self._admitted += 1
        self._waited += time.monotonic() - sequence.added
        return sequence

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._waiting or self._active or self._filling):
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
            self._compute(admitted)

    def _accept(self, batch: Mapping[int, ScheduledSequence], choices: Iterable[Choice]) -> None:
        """Pass each slot's token to its sequence, and the event to its sink."""
        for (slot, sequence), (token, logprob) in zip(batch.items(), choices, strict=True):
            if self._active.get(slot) is not sequence:  # it ended while this was computed
                continue
            try:
                event = sequence.accept(token, logprob, self._limits.max_length)
            except Exception as e:
                self._fail({slot: sequence}, e)
                continue
            if event.finish is not None:
                with self._wake:
                    self._active.pop(slot)
            if not self._emit(sequence, event):
                with self._wake:
                    self._active.pop(slot, None)

    def _fail(self, batch: Mapping[int, ScheduledSequence], error: Exception) -> None:
        for slot, sequence in batch.items():
            if self._active.get(slot) is sequence:
                with self._wake:
                    self._active.pop(slot)
                self._end(sequence, "error", f"{type(error).__name__}: {error}")


def choose_on_host(logits: torch.Tensor, sequences: Iterable[ScheduledSequence]) -> list[Choice]:
    """Choose the next token of each sequence from its row of logits, and its log-probability if asked for."""
    batch = list(sequences)
    tokens = choose_tokens(logits, [sequence.sampler for sequence in batch])
    return [
        (t, log_probability(row, t) if s.request.logprobs and isinstance(t, int) else None)
        for s, row, t in zip(batch, logits, tokens, strict=True)
    ]


class Scheduler(RequestScheduler):
    """Runs requests on the reference executor.

    Args:
        model: the executor, for the scheduler's exclusive use.
        max_batch_size: sequences computed together.
    """

    def __init__(self, model: SchedulableModel, max_batch_size: int = 8) -> None:
        if max_batch_size < 1:
            raise UsageError(f"max_batch_size is {max_batch_size}", fix="at least 1")
        self._model, self._cache = model, model.new_cache(max_batch_size)
        #: Submitted steps: their sequences by slot, and what reads a token of each.
        self._steps: deque[tuple[dict[int, ScheduledSequence], Callable[[], list[Choice]]]] = deque()
        super().__init__(model, max_batch_size)

    def _admit(self) -> dict[int, ScheduledSequence]:
        """Return slot → waiting request: one, and as many more as the model computes together."""
        admitted: dict[int, ScheduledSequence] = {}
        token_budget = self._model.prompt_tokens
        for slot in range(self._slots):
            if not self._waiting or self._filling:  # one long prompt at a time
                break
            if slot in self._active:
                continue
            token_budget -= len(self._waiting[0].request.prompt)
            if admitted and token_budget < 0:
                break
            admitted[slot] = self._place()
        return admitted

    def _compute(self, admitted: dict[int, ScheduledSequence]) -> None:
        """Compute some prompts, then one token for each: bursts of prompts do not stall running answers."""
        if admitted or self._filling:
            self._prefill_all(admitted)
            self.after_step()
        if self._active:
            self._decode()
            self.after_step()

    def _prefill_all(self, admitted: dict[int, ScheduledSequence]) -> None:
        piece_tokens, logits_by_slot = self._model.piece_tokens, dict[int, torch.Tensor]()
        for slot, sequence in admitted.items():
            if piece_tokens and len(sequence.request.prompt) > piece_tokens:
                self._filling[slot] = sequence
        admitted = admitted | self._filling
        if len(admitted) > 1:
            # Requests that fail together are retried one by one, so that only the faulty one ends.
            with contextlib.suppress(Exception):
                logits_by_slot = self._model.prefill_all(
                    self._cache, {slot: s.request.prompt for slot, s in admitted.items()}
                )
        for slot, sequence in admitted.items():
            if slot not in logits_by_slot and (logits := self._prefill(slot, sequence)) is not None:
                logits_by_slot[slot] = logits
        batch = {slot: sequence for slot, sequence in admitted.items() if slot in logits_by_slot}
        if batch:
            with self._wake:
                self._active.update(batch)
            self._submit(batch, logits_by_slot)

    def _prefill(self, slot: int, sequence: ScheduledSequence) -> torch.Tensor | None:
        """Return the logits after a prompt; ``None`` where more of it is to come, or after an error."""
        prompt = sequence.request.prompt
        try:
            if slot not in self._filling:
                return self._model.prefill(self._cache, slot, prompt)
            piece = prompt[sequence.stored : sequence.stored + self._model.piece_tokens]
            logits = self._model.prefill(self._cache, slot, piece, extend=sequence.stored > 0)
            sequence.stored += len(piece)
            if sequence.stored < len(prompt):
                return None
        except Exception as e:
            self._end(sequence, "error", f"{type(e).__name__}: {e}")
            logits = None
        with self._wake:
            self._filling.pop(slot, None)
        return logits

    def _decode(self) -> None:
        batch = {slot: s for slot, s in self._active.items() if s.continues(self._model.max_length)}
        if not batch:  # the tokens under way are the last ones
            self._finish_steps(0)
        else:
            self._submit(batch, None)

    def _submit(
        self, batch: dict[int, ScheduledSequence], after_prompts: dict[int, torch.Tensor] | None
    ) -> None:
        """Choose a token of each, from the logits after their prompts or of the next step."""
        model, slots = self._model, list(batch)
        try:
            if after_prompts is None and model.steps_ahead:
                read = self._choose(batch, model.decode_stored(self._cache, slots), None)
            else:
                logits_by_slot = (
                    model.decode(self._cache, {slot: s.last for slot, s in batch.items()})
                    if after_prompts is None
                    else after_prompts
                )
                logits = torch.stack([logits_by_slot[slot] for slot in slots])
                read = self._choose(batch, logits, slots)
        except Exception as e:
            self._fail(batch, e)
            return
        self._steps.append((batch, read))
        self._finish_steps(self._model.steps_ahead)

    def _choose(
        self, batch: dict[int, ScheduledSequence], logits: torch.Tensor, slots: list[int] | None
    ) -> Callable[[], list[Choice]]:
        """Choose a token for each row of logits, of ``slots`` or its own; a step ahead only submit it."""
        if not self._model.steps_ahead:
            choices = choose_on_host(logits, batch.values())
            return lambda: choices
        rows = {slot: row for row, slot in enumerate(slots)} if slots else {slot: slot for slot in batch}
        samplers = {rows[slot]: sequence.sampler for slot, sequence in batch.items()}
        logprobs = any(sequence.request.logprobs for sequence in batch.values())
        ids, read = choose_tokens_on_device(logits, samplers, logprobs=logprobs)
        self._cache.tokens[move_to_device(slots, ids.device) if slots else slice(len(ids))] = ids
        return lambda: [choices[rows[slot]] for choices in [read()] for slot in batch]

    def _finish_steps(self, ahead: int) -> None:
        """Read the tokens of submitted steps, all but the last ``ahead``."""
        while len(self._steps) > ahead:
            batch, read = self._steps.popleft()
            try:
                choices = read()
            except Exception as e:
                self._fail(batch, e)
                continue
            self._accept(batch, choices)
