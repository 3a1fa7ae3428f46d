"""Continuous batching over the slots of an engine: prompts and answers share the steps.

Requests, their order, random numbers and sampling are those of kind ``reference``
(``enginix.reference.scheduler``); a step is another one.
"""

from __future__ import annotations

import torch

from enginix.errors import UsageError
from enginix.kinds.rtx_serving.slot_sequences import SlotSequences
from enginix.kinds.rtx_serving.step_backend import StepBackend
from enginix.reference.batched_sampling import Choice, choose_tokens_on_device
from enginix.reference.scheduler import RequestScheduler, ScheduledSequence, choose_on_host


class SlotScheduler(RequestScheduler):
    """Runs requests in the slots of an engine.

    Each step takes the next piece of every prompt under way and the last token of every answer, so that a
    prompt does not hold up the answers. A step that raises fails the requests in it.

    Args:
        backend: for the scheduler's exclusive use; closed with it.
        max_batch_size: requests that run at once, at most the engine's slots.
    """

    def __init__(self, backend: StepBackend, max_batch_size: int | None = None) -> None:
        slots = backend.shape.slots
        size = slots if max_batch_size is None else max_batch_size
        if size > slots:
            raise UsageError(f"max_batch_size is {size}", fix=f"the engine has {slots} slots")
        self._sequences = SlotSequences(backend)
        super().__init__(self._sequences, size)

    def close(self, timeout: float | None = None) -> None:
        """Cancel all requests, wait for the worker thread, and release the engine."""
        super().close(timeout)
        if not self._thread.is_alive():
            self._sequences.backend.close()

    def _admit(self) -> dict[int, ScheduledSequence]:
        """Give every free slot to a waiting request."""
        admitted: dict[int, ScheduledSequence] = {}
        for slot in range(self._slots):
            if self._waiting and slot not in self._active and slot not in self._filling:
                admitted[slot] = self._place()
        return admitted

    def _compute(self, admitted: dict[int, ScheduledSequence]) -> None:
        with self._wake:
            self._filling.update(admitted)
            prompts, answers = dict(self._filling), dict(self._active)
        size = self._sequences.backend.shape.step_tokens
        pieces = {slot: s.request.prompt[s.stored : s.stored + size] for slot, s in prompts.items()}
        begun = [slot for slot, s in prompts.items() if not s.stored]
        pieces |= {slot: (s.last,) for slot, s in answers.items()}
        if not pieces:  # all were cancelled
            return
        try:
            logits = self._sequences.run_step(pieces, begun)
        except Exception as e:
            self._fail_step(prompts, answers, e)
            return
        for slot, sequence in prompts.items():
            sequence.stored += len(pieces[slot])
        whole = {slot: s for slot, s in prompts.items() if s.stored == len(s.request.prompt)}
        with self._wake:
            for slot in whole:
                self._active[slot] = self._filling.pop(slot)
        rows = {slot: row for row, slot in enumerate(pieces)}
        batch = {slot: s for slot, s in {**prompts, **answers}.items() if slot in whole or slot in answers}
        if batch:
            try:
                choices = _choose_tokens(logits[[rows[slot] for slot in batch]], list(batch.values()))
            except Exception as e:
                self._fail(batch, e)
            else:
                self._accept(batch, choices)
        self.after_step()

    def _fail_step(
        self, prompts: dict[int, ScheduledSequence], answers: dict[int, ScheduledSequence], error: Exception
    ) -> None:
        """End the requests of a step that raised; all of them, as they share it."""
        with self._wake:
            for slot in prompts:
                self._active[slot] = self._filling.pop(slot)
        self._fail({**prompts, **answers}, error)
        self.after_step()


@torch.inference_mode()
def _choose_tokens(logits: torch.Tensor, sequences: list[ScheduledSequence]) -> list[Choice]:
    """Choose the next token of each sequence from its row: on the GPU where the logits are, or on the CPU."""
    if logits.device.type == "cpu":
        return choose_on_host(logits, sequences)
    logprobs = any(sequence.request.logprobs for sequence in sequences)
    samplers = {row: sequence.sampler for row, sequence in enumerate(sequences)}
    _, read = choose_tokens_on_device(logits, samplers, logprobs=logprobs)
    return read()
