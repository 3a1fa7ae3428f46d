"""Subjects that the gates question, the engine and the reference model: they give logits and answers."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from enginix.errors import GateError
from enginix.evaluation.reference_answers import hf
from enginix.model.attention_window import read_context
from enginix.model.context_length import read_model_context
from enginix.progress import ProgressStep, track_step

if TYPE_CHECKING:  # the package of the reference answers has no executor (nix/mk-reference-answers.nix)
    from enginix.reference.executor import Executor
    from enginix.reference.scheduler import GenerationEvent, Scheduler

BATCH = 8
WHOLE = 1 << 28  # logits that one forward pass of the reference executor may return
# On a GPU: sequences, and tokens of all their caches.
GPU_BATCH, GPU_TOKENS = 16, 65536
NOT_FINITE = "logits hold NaN or infinity"


class Subject(Protocol):
    """A model that answers in tokens.

    Attributes:
        vocab_size: of the logits.
        max_length: prompt and answer together.
        tie: two logits this close may change places in another batch; 0 where none may.
    """

    vocab_size: int
    max_length: int
    tie: float

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """Yield logits float32 [T, vocab_size] of each text."""
        ...

    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Return logits float32 [len(positions), vocab_size] of one text at some positions."""
        ...

    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        """Return each layer's output, float32 [T, hidden]; the last one after the final norm."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        """Return greedy answers of at most ``most`` tokens, an end token included."""
        ...


class ExecutorSubject:
    """The reference executor, on a checkpoint."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.vocab_size, self.max_length = executor.config.vocab_size, executor.max_length
        self.tie = 0.0 if executor.device.type == "cpu" else 0.05
        self._scheduler: tuple[int, Scheduler, Callable[[], object]] | None = None

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        return self.executor.iterate_logits(texts)

    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        if len(text) * self.vocab_size <= WHOLE:
            logits = self.executor.forward([text])[0]
            return require_finite_logits(logits, len(text), self.vocab_size)[list(positions)]
        return self.executor.forward([text], positions)[0]

    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        return self.executor.hidden(text)

    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        scheduler = self._find_scheduler(most + max(map(len, prompts), default=0))
        with track_step("answering", len(prompts), "prompts") as progress:
            groups = [prompts] if together else [[prompt] for prompt in prompts]
            return [
                answer
                for group in groups
                for answer in _generate_batch(scheduler, group, most, ends, progress)
            ]

    def _find_scheduler(self, longest: int) -> Scheduler:
        """Return one scheduler for all questions, so that cache and captured steps are used again."""
        from enginix.reference.scheduler import Scheduler

        slots = BATCH
        if self.executor.device.type != "cpu":
            slots = max(1, min(GPU_BATCH, GPU_TOKENS // longest))
        if self._scheduler is None or self._scheduler[0] != slots:
            if self._scheduler is not None:
                self._scheduler[2]()
            scheduler = Scheduler(self.executor, slots)
            self._scheduler = slots, scheduler, weakref.finalize(self, scheduler.close)
        return self._scheduler[1]


def _generate_batch(
    scheduler: Scheduler,
    prompts: Sequence[Sequence[int]],
    most: int,
    ends: frozenset[int],
    progress: ProgressStep,
) -> list[list[int]]:
    from enginix.reference.scheduler import GenerationRequest

    out: list[list[int]] = [[] for _ in prompts]
    errors: list[str] = []
    remaining, done = [len(prompts)], threading.Event()

    def sink(event: GenerationEvent) -> None:
        if event.token is not None:
            out[int(event.id)].append(event.token)
        if event.error:
            errors.append(event.error)
        if event.finish is not None:
            remaining[0] -= 1
            progress.advance()
            if not remaining[0]:
                done.set()

    for number, prompt in enumerate(prompts):
        scheduler.add(GenerationRequest(str(number), tuple(prompt), most, ends), sink)
    if prompts:
        done.wait()
    if errors:
        raise GateError(f"the engine failed while answering: {errors[0]}")
    return out


def name_cache_argument(model: torch.nn.Module) -> str:
    """Return the name of a model's key-value cache, of its arguments and its answers.

    transformers 5.24 calls it ``cache``; with the older name it warns, and its answers have none.
    """
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"


class TransformersSubject:
    """The Hugging Face model, executed by transformers in its own dtype's numbers, computed in float32.

    Raises:
        GateError: the model cannot be loaded whole; without reference no gate passes.
    """

    tie = 0.05

    def __init__(self, model: Path, device: str = "cpu") -> None:
        self.model, self.device = hf.load_hf_model(model, device), device
        config = self.model.config
        self.vocab_size = int(config.vocab_size)
        # Within this length an engine without the model's sliding window computes the same.
        self.max_length = read_context(
            model, read_model_context(config.to_dict()) or int(config.max_position_embeddings)
        )

    def _ids(self, text: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(text)], device=self.device)

    @torch.inference_mode()
    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        for text in texts:
            yield self.model(self._ids(text)).logits[0].float()

    @torch.inference_mode()
    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(list(positions), device=self.device)
        logits: torch.Tensor = self.model(self._ids(text), logits_to_keep=index, use_cache=False).logits[0]
        return logits.float()

    @torch.inference_mode()
    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        states = self.model(self._ids(text), output_hidden_states=True).hidden_states
        return [state[0].float() for state in states[1:]]

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], *, together: bool = True
    ) -> list[list[int]]:
        out = []
        with track_step("answering", len(prompts), "prompts") as progress:
            for prompt in prompts:
                token_limit = max(1, min(most, self.max_length - len(prompt)))
                out.append(self._continue_prompt(prompt, token_limit, ends))
                progress.advance()
        return out

    def _continue_prompt(self, prompt: Sequence[int], most: int, ends: frozenset[int]) -> list[int]:
        """Return the greedy answer to one prompt.

        ``generate`` of transformers gives the same for 1.6 times the processor time of a tiny model.
        """
        answer: list[int] = []
        ids, cache = self._ids(prompt), None
        name = name_cache_argument(self.model)
        while len(answer) < most:
            step = self.model(ids, **{name: cache}, use_cache=True, logits_to_keep=1)
            # A recurrent model keeps its state to itself, and starts again with each text.
            cache = step.get(name)
            answer.append(int(step.logits[0, -1].argmax()))
            if answer[-1] in ends:
                break
            ids = self._ids([*prompt, *answer] if cache is None else answer[-1:])
        return answer


def require_logits_shape(logits: torch.Tensor, length: int, vocab_size: int) -> None:
    """Raise GateError where the logits of a text are not [length, vocab_size]."""
    if tuple(logits.shape) != (length, vocab_size):
        raise GateError(f"logits of shape {list(logits.shape)}, expected {[length, vocab_size]}")


def require_finite_logits(logits: torch.Tensor, length: int, vocab_size: int) -> torch.Tensor:
    """Return the logits of a text, if their shape is right and they are finite.

    Raises:
        GateError: another shape, or not finite.
    """
    require_logits_shape(logits, length, vocab_size)
    if not bool(torch.isfinite(logits).all()):
        raise GateError(NOT_FINITE)
    return logits
