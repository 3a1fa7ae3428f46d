"""Subjects that the gates question, the engine and the reference model: they give logits and answers."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
# Of prompts that the reference continues side by side: tokens of the longest one, and of all with answers.
DRAFTED, DRAFT_TOKENS = 128, 4096
# Of texts that the reference reads side by side: padding of the shortest one, which costs less than a forward
# pass of its own, and logits of all.
PADDED, CONFIRMED = 8, 1 << 26
_HIDDEN = torch.finfo(torch.float32).min
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


def group_neighbours(numbers: Iterable[int], fits: Callable[[Sequence[int]], bool]) -> Iterator[list[int]]:
    """Yield the numbers in their order, in groups as large as fit; one alone always does."""
    group: list[int] = []
    for number in numbers:
        if group and not fits([*group, number]):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def cut_at_end(answer: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return an answer up to its first end token."""
    last = next((n for n, token in enumerate(answer) if token in ends), len(answer))
    return list(answer[: last + 1])


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
            yield self.model(self._ids(text), use_cache=False).logits[0].float()

    @torch.inference_mode()
    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(list(positions), device=self.device)
        logits: torch.Tensor = self.model(self._ids(text), logits_to_keep=index, use_cache=False).logits[0]
        return logits.float()

    @torch.inference_mode()
    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        states = self.model(self._ids(text), output_hidden_states=True, use_cache=False).hidden_states
        return [state[0].float() for state in states[1:]]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        most: int,
        ends: frozenset[int],
        *,
        together: bool = True,
        drafts: Sequence[Sequence[int]] = (),
    ) -> list[list[int]]:
        """Return greedy answers, as every :class:`Subject` does.

        Args:
            drafts: another model's answers to the prompts; each that this model confirms is not computed.
        """
        with track_step("answering", len(prompts), "prompts") as progress:
            answers = self._confirm_drafts(prompts, dict(enumerate(drafts)), most, ends, progress)
            if together:
                numbers = [number for number in range(len(prompts)) if number not in answers]
                own_drafts = self._draft_answers(prompts, numbers, most, ends)
                answers |= self._confirm_drafts(prompts, own_drafts, most, ends, progress)
            for number, prompt in enumerate(prompts):
                if number not in answers:
                    answers[number] = self._continue_prompt(prompt, self._limit_answer(prompt, most), ends)
                    progress.advance()
        return [answers[number] for number in range(len(prompts))]

    def _limit_answer(self, prompt: Sequence[int], most: int) -> int:
        return max(1, min(most, self.max_length - len(prompt)))

    def _draft_answers(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], most: int, ends: frozenset[int]
    ) -> dict[int, list[int]]:
        """Return drafts of the answers to short prompts, by number: greedy answers of padded batches.

        Not every model computes the same in a padded batch, so an answer counts once the model confirmed it
        without padding before it. A step of a batch costs little more than one of a prompt.
        """
        short = sorted(
            (n for n in numbers if 0 < len(prompts[n]) <= min(DRAFTED, self.max_length - most)),
            key=lambda n: len(prompts[n]),
        )
        size = DRAFT_TOKENS // (DRAFTED + most)
        drafts: dict[int, list[int]] = {}
        for start in range(0, len(short), size):
            group = short[start : start + size]
            try:
                answers = self._continue_batch([prompts[n] for n in group], most, ends)
            except Exception:  # a model that takes no padding answers one prompt at a time
                return {}
            drafts |= zip(group, answers, strict=True)
        return drafts

    def _confirm_drafts(
        self,
        prompts: Sequence[Sequence[int]],
        drafts: Mapping[int, Sequence[int]],
        most: int,
        ends: frozenset[int],
        progress: ProgressStep,
    ) -> dict[int, list[int]]:
        """Return the drafts, by number, that are this model's own answers.

        Of a whole draft each token must be the most likely one after those before it. Texts of about one
        length are computed together, padded behind: no token of theirs sees the padding.
        """
        whole: dict[int, list[int]] = {}
        for number, draft in drafts.items():
            token_limit = self._limit_answer(prompts[number], most)
            answer = cut_at_end(draft, ends)[:token_limit]
            is_whole = bool(answer) and (len(answer) == token_limit or answer[-1] in ends)
            if prompts[number] and is_whole and 0 <= min(answer) <= max(answer) < self.vocab_size:
                whole[number] = answer
        lengths = {number: len(prompts[number]) + len(answer) for number, answer in whole.items()}

        def fits(group: Sequence[int]) -> bool:
            longest = lengths[group[-1]]
            scored = len(group) * (longest - min(len(prompts[n]) for n in group))
            return (
                longest - lengths[group[0]] <= PADDED
                and len(group) * longest <= DRAFT_TOKENS
                and scored * self.vocab_size <= CONFIRMED
            )

        confirmed: dict[int, list[int]] = {}
        for group in group_neighbours(sorted(whole, key=lengths.__getitem__), fits):
            try:
                is_greedy = self._are_greedy([prompts[n] for n in group], [whole[n] for n in group])
            except Exception:  # a model that takes no batch answers one prompt at a time
                continue
            own = {n: whole[n] for n, is_own in zip(group, is_greedy, strict=True) if is_own}
            confirmed |= own
            progress.advance(len(own))
        return confirmed

    def _continue_batch(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int]
    ) -> list[list[int]]:
        """Return the answers to prompts that are padded on the left; none of a model without a cache."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        starts = torch.tensor([longest - len(p) for p in prompts], device=self.device)
        keys = torch.arange(longest, device=self.device)
        is_hidden = (keys[None, :] > keys[:, None]) | (keys < starts[:, None])[:, None, None, :]
        # Of four dimensions, which transformers takes as it is: its own mask costs more than a step.
        mask = torch.zeros(is_hidden.shape, device=self.device).masked_fill(is_hidden, _HIDDEN)
        positions = (keys - starts[:, None]).clamp(min=0)
        answers: list[list[int]] = [[] for _ in prompts]
        cache: Any = None
        name = name_cache_argument(self.model)
        for _ in range(most):
            step = self.model(
                ids,
                attention_mask=mask,
                position_ids=positions,
                **{name: cache},
                use_cache=True,
                logits_to_keep=1,
            )
            cache = step.get(name)
            if cache is None:
                return [[] for _ in prompts]
            ids = step.logits[:, -1].argmax(-1, keepdim=True)
            for answer, token in zip(answers, ids[:, 0].tolist(), strict=True):
                if not answer or answer[-1] not in ends:
                    answer.append(token)
            if all(answer[-1] in ends for answer in answers):
                break
            mask = torch.nn.functional.pad(mask[:, :, -1:], (0, 1))
            positions = positions[:, -1:] + 1
        return answers

    def _are_greedy(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[bool]:
        """Return for each answer whether its tokens are the most likely ones after those before them."""
        texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
        longest, first = max(map(len, texts)), min(map(len, prompts)) - 1
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.device)
        logits = self.model(ids, use_cache=False, logits_to_keep=longest - first).logits
        return [
            tokens[len(prompt) - 1 - first :][: len(answer)] == list(answer)
            for tokens, prompt, answer in zip(logits.argmax(-1).tolist(), prompts, answers, strict=True)
        ]

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
