"""The reference's answers: computed once for a model and stored; every engine of it is compared with them.

Of each position's distribution the most likely tokens and the log-probability of the text's next token are
stored, so that the answers of a model with a large vocabulary stay small. The gate logits compares whole
distributions: those of the prompts are in a separate file, which only this gate reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.errors import GateError
from enginix.evaluation.reference_answers.exact_answers import count_answered
from enginix.evaluation.reference_answers.material import (
    GateQuestion,
    GateTokenizer,
    Material,
    sample_positions,
)
from enginix.evaluation.reference_answers.subject import (
    NOT_FINITE,
    Subject,
    require_finite_logits,
    require_logits_shape,
)
from enginix.files import dump_json, refuse_damage, write_text
from enginix.integrity import require_unchanged
from enginix.model.identity import format_identity, is_same_model
from enginix.progress import track_step

GROUP = 128  # tokens of a large vocabulary in one group
AHEAD = 2  # texts whose logits may lie on a device at a time
KEPT = 64  # most likely tokens of a position
CONTINUED = 64  # tokens of a continuation
ANSWERED = 32  # tokens of an answer to a question
RECALLS_TRIED = 4  # of the shortest texts with a planted fact, before longer ones are asked
LAYERS_OF = 32  # positions of the first passage whose hidden states are stored
FORMAT = 4
FILE, TENSORS, LOGITS = "answers.json", "answers.safetensors", "logits.safetensors"
PARTS = ("ids", "logs", "text")  # of a stored passage
MODEL_FILES = "model"  # the model's tokenizer and configuration

# (prompts, most tokens of an answer, end tokens) → greedy answers.
Generate = Callable[[Sequence[Sequence[int]], int, frozenset[int]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Passage:
    """A passage's T - 1 next-token distributions.

    Attributes:
        ids: int32 [T - 1, KEPT], the most likely tokens, best first.
        logs: float32 [T - 1, KEPT], natural logarithms of their probabilities.
        text_logs: float32 [T - 1], of the text's own next token.
    """

    ids: torch.Tensor
    logs: torch.Tensor
    text_logs: torch.Tensor

    @staticmethod
    def read(tensors: Mapping[str, torch.Tensor], name: str) -> Passage:
        """Return the passage of a name among stored tensors."""
        return Passage(*(tensors[f"{name}.{part}"] for part in PARTS))

    def store(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors that :meth:`read` reads."""
        return {f"{name}.{part}": tensor for part, tensor in zip(PARTS, vars(self).values(), strict=True)}


@dataclass(frozen=True)
class ReferenceAnswers:
    """All answers of the reference.

    Attributes:
        model: its identity.
        material: digest of the questions.
        ends: tokens that end an answer.
        hidden: each layer's output on the first passage's first positions.
        dtype: the widest among the model's weights, which determines the bound of the gate logits.
        long: distributions of the long text at the sampled positions.
    """

    model: dict[str, Any]
    material: str
    ends: frozenset[int]
    passages: tuple[Passage, ...]
    continuations: tuple[tuple[int, ...], ...]
    replies: tuple[tuple[int, ...], ...]
    hidden: tuple[torch.Tensor, ...]
    dtype: str | None = None
    recalls: tuple[tuple[int, ...], ...] = ()
    long: Passage | None = None


def select_most_likely(logs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and ids of the most likely tokens, best first, as ``topk`` of [T, vocab_size] does.

    A large vocabulary is cut into groups: the ``count`` best tokens lie in the ``count`` groups with the
    largest maxima, so all others are read once, where topk's radix search reads them up to sixteen times.
    """
    if logs.shape[-1] < 4 * count * GROUP:
        values, ids = logs.topk(min(count, logs.shape[-1]), -1)
        return values, ids
    padding = -logs.shape[-1] % GROUP
    padded = torch.nn.functional.pad(logs, (0, padding), value=-math.inf) if padding else logs
    groups = padded.reshape(len(logs), -1, GROUP)
    chosen = groups.amax(-1).topk(count, -1).indices
    candidates = groups.gather(1, chosen[..., None].expand(-1, -1, GROUP)).flatten(1)
    values, position = candidates.topk(count, -1)
    return values, chosen.gather(1, position // GROUP) * GROUP + position % GROUP


def build_passage(logs: torch.Tensor, tokens: tuple[int, ...], count: int = KEPT) -> Passage:
    """Build the distributions of a text of T tokens from log-probabilities [T - 1, vocab_size].

    The result stays on their device and is not waited for: a caller with many texts fetches them at the end.
    """
    return _select_distributions(logs, tokens[1:], count)


def _select_distributions(logs: torch.Tensor, following: Sequence[int], count: int = KEPT) -> Passage:
    top_logs, ids = select_most_likely(logs, count)
    text = logs.gather(1, torch.tensor(following, device=logs.device)[:, None])[:, 0]
    return Passage(ids.int(), top_logs, text)


@torch.inference_mode()
def score_positions(
    subject: Subject, text: Sequence[int], positions: Sequence[int]
) -> tuple[Passage, torch.Tensor]:
    """Return a subject's distributions at some positions of a text, and its log-probabilities there.

    Raises:
        GateError: logits of another shape, or not finite.
    """
    logits = subject.logits_at(text, positions)
    require_finite_logits(logits, len(positions), subject.vocab_size)
    logs = logits.log_softmax(-1)
    passage = _select_distributions(logs, [text[position + 1] for position in positions])
    return move_passages([passage], "cpu")[0], logs


@torch.inference_mode()
def score_texts(
    subject: Subject,
    texts: Sequence[tuple[int, ...]],
    measure: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    count: int = KEPT,
) -> tuple[list[Passage], list[torch.Tensor]]:
    """Return a subject's distributions on texts, fetched from its device after the last text was submitted.

    Args:
        texts: token ids, at least two each.
        measure: (number of the text, log-probabilities [T - 1, vocab_size]) → a further measurement,
            [T - 1, …].
        count: most likely tokens that are kept of a position.

    Returns:
        For each text its distributions, and the measurement, all on the CPU.

    Raises:
        GateError: logits of another shape, or not finite.
    """
    passages, others, finite = [], [], []
    side_stream = _SideStream()
    with track_step("scoring", len(texts), "texts") as progress:
        for number, (text, logits) in enumerate(zip(texts, subject.logits(texts), strict=True)):
            require_logits_shape(logits, len(text), subject.vocab_size)
            with side_stream.of(logits):
                finite.append(torch.stack(torch.aminmax(logits)).isfinite().all())
                logs = logits[:-1].log_softmax(-1)
                passages.append(build_passage(logs, text, count))
                if measure is not None:
                    others.append(measure(number, logs))
            progress.advance()
        side_stream.wait()
    if not passages:
        return [], []
    if not bool(torch.stack(finite).all()):
        raise GateError(NOT_FINITE)
    lengths = [len(p.text_logs) for p in passages]
    return move_passages(passages, "cpu"), list(
        torch.split(torch.cat(others).cpu(), lengths)
    ) if others else []


def move_passages(passages: Sequence[Passage], device: torch.device | str) -> list[Passage]:
    """Copy passages to another device, with one transfer for each kind of tensor."""
    lengths = [len(p.text_logs) for p in passages]
    parts = (
        torch.split(torch.cat([getattr(p, name) for p in passages]).to(device), lengths)
        for name in ("ids", "logs", "text_logs")
    )
    return [Passage(*each) for each in zip(*parts, strict=True)]


class _SideStream:
    """A second stream on a GPU, whose work overlaps with the next text's forward pass."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.ended: list[torch.cuda.Event] = []

    @contextmanager
    def of(self, logits: torch.Tensor) -> Iterator[None]:
        """Run the block on the stream, after ``logits`` are ready and after earlier blocks."""
        if logits.device.type != "cuda":
            yield
            return
        self.stream = self.stream or torch.cuda.Stream(logits.device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(logits.device))
        logits.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            yield
            self.ended.append(self.stream.record_event())
        if len(self.ended) > AHEAD:  # logits of many texts would fill the device
            self.ended[-AHEAD].synchronize()

    def wait(self) -> None:
        """Make later work wait for all earlier blocks."""
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


def _ask_recalls(
    subject: Subject, questions: Sequence[GateQuestion], ends: frozenset[int], tokenizer: GateTokenizer
) -> tuple[tuple[int, ...], ...]:
    """Return the answers about planted facts; empty ones to long texts where the short ones show no skill.

    The gate context cannot judge an engine of such a model, and long texts cost most of the time.
    """
    replies: list[tuple[int, ...]] = []
    for asked in (questions[:RECALLS_TRIED], questions[RECALLS_TRIED:]):
        replies += map(tuple, subject.generate([q.tokens for q in asked], ANSWERED, ends))
        if not count_answered(questions[: len(replies)], replies, ends, tokenizer):
            break
    return (*replies, *[()] * (len(questions) - len(replies)))


def ask_reference(
    subject: Subject,
    material: Material,
    ends: frozenset[int],
    model: dict[str, Any],
    tokenizer: GateTokenizer,
    check_replies: Callable[[Sequence[Sequence[int]]], None] = lambda _: None,
    continue_prompts: Generate | None = None,
) -> ReferenceAnswers:
    """Ask the reference all questions.

    Args:
        tokenizer: the model's.
        check_replies: called with the replies to the questions, before the longer work; may raise.
        continue_prompts: has the subject continue the prompts, last of all; None for ``subject.generate``.

    Raises:
        GateError: the reference gives no finite answers.
    """
    texts = [p.tokens for p in material.passages]
    replies = subject.generate([q.tokens for q in material.questions], ANSWERED, ends)
    check_replies(replies)
    passages = tuple(score_texts(subject, texts)[0])
    positions = [position for octave in sample_positions(len(material.long)) for position in octave]
    long = score_positions(subject, material.long, positions)[0] if positions else None
    hidden = tuple(state.cpu() for state in subject.hidden(texts[0][:LAYERS_OF]))
    recalls = _ask_recalls(subject, material.recalls, ends, tokenizer)
    # Last: an engine that drafts them is loaded when the logits of long texts are off the device.
    continuations = (continue_prompts or subject.generate)(
        [p.tokens for p in material.prompts], CONTINUED, ends
    )
    return ReferenceAnswers(
        model,
        material.sha256,
        ends,
        passages,
        tuple(map(tuple, continuations)),
        tuple(map(tuple, replies)),
        hidden,
        recalls=recalls,
        long=long,
    )


def write_reference_answers(answers: ReferenceAnswers, directory: Path) -> None:
    """Write ``answers.json`` and ``answers.safetensors``."""
    tensors: dict[str, torch.Tensor] = {}
    for number, stored_passage in enumerate(answers.passages):
        tensors |= stored_passage.store(str(number))
    if answers.long is not None:
        tensors |= answers.long.store("long")
    tensors |= {f"hidden.{n}": state.contiguous() for n, state in enumerate(answers.hidden)}
    save_file(tensors, directory / TENSORS)
    described = {
        "format": FORMAT,
        "model": answers.model,
        "material": answers.material,
        "ends": sorted(answers.ends),
        "passages": len(answers.passages),
        "layers": len(answers.hidden),
        "dtype": answers.dtype,
        "continuations": list(map(list, answers.continuations)),
        "replies": list(map(list, answers.replies)),
        "recalls": list(map(list, answers.recalls)),
    }
    write_text(directory / FILE, dump_json(described))


def require_same_material(answers: ReferenceAnswers, material: Material) -> None:
    """Refuse answers to other questions than ``material``.

    Raises:
        GateError: other texts, questions or token ids.
    """
    if answers.material != material.sha256 or len(answers.passages) != len(material.passages):
        raise GateError(
            "the reference's answers are to other questions, or of another tokenizer",
            fix="make them again: enginix reference MODEL -o DIR; pass the same --questions to both",
        )


def write_logits(logits: Iterable[torch.Tensor], directory: Path) -> None:
    """Write ``logits.safetensors``: of each prompt float32 [T, vocab_size], for the gate logits alone."""
    save_file(
        {str(n): prompt_logits.contiguous().cpu() for n, prompt_logits in enumerate(logits)},
        directory / LOGITS,
    )


def read_logits(directory: Path, count: int) -> list[torch.Tensor]:
    """Read logits of ``count`` prompts that :func:`write_logits` wrote; the gate checks them for NaN.

    Raises:
        GateError: missing, damaged, or of another number of prompts.
    """
    with _refuse_damaged_answers(directory):
        tensors = load_file(directory / LOGITS)
        if len(tensors) != count:
            raise ValueError(f"{len(tensors)} prompts, not {count}")
        return [tensors[str(n)] for n in range(count)]


def _refuse_damaged_answers(directory: Path) -> AbstractContextManager[None]:
    fix = "make them again: enginix reference MODEL -o DIR"
    what = "the reference's answers cannot be read"
    return refuse_damage(GateError, directory, fix, what=what, also=(SafetensorError,))


def is_answers(directory: Path) -> bool:
    """Return whether a reference is a model's kept answers, and not the model itself."""
    return (directory / FILE).is_file()


def require_whole_answers(directory: Path, engine: Path | None = None) -> None:
    """Refuse answers that changed, that have no manifest, or that another model gave.

    Args:
        engine: the engine or checkpoint that is judged by them.

    Raises:
        ManifestError: a file changed, or the manifest is missing.
        GateError: they are of another model than the engine.
    """
    answers = manifest.read_manifest(directory, "answers")
    require_unchanged(directory)
    if engine is None or not (engine / manifest.MANIFEST_FILE).exists():
        return
    judged, named = manifest.read_manifest(engine), []
    model = judged.inputs.get("model")
    while isinstance(model, dict):
        named.append(model)
        model = model.get("model")
    answered = answers.inputs.get("model")
    # A model that another tool quantized does not name the one before it, which is asked.
    is_unknown = not named or (judged.model.get("quantization") is not None and len(named) == 1)
    if not is_unknown and not any(is_same_model(model, answered) for model in named):
        raise GateError(
            f"answers of {format_identity(answered)}, and the {judged.artefact} was made from "
            f"{format_identity(named[0])}",
            where=str(directory),
            fix="ask its model: enginix reference MODEL -o DIR",
        )


def read_reference_answers(directory: Path) -> ReferenceAnswers:
    """Read what :func:`write_reference_answers` wrote.

    Raises:
        GateError: missing, damaged, or of another format; without reference no gate passes.
        ManifestError: a file changed since the model was asked.
    """
    require_whole_answers(directory)
    with _refuse_damaged_answers(directory):
        raw = json.loads((directory / FILE).read_text("utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, not {FORMAT}")
        tensors = load_file(directory / TENSORS)
        answers = ReferenceAnswers(
            raw["model"],
            raw["material"],
            frozenset(raw["ends"]),
            tuple(Passage.read(tensors, str(n)) for n in range(raw["passages"])),
            tuple(map(tuple, raw["continuations"])),
            tuple(map(tuple, raw["replies"])),
            tuple(tensors[f"hidden.{n}"] for n in range(raw["layers"])),
            raw["dtype"],
            tuple(map(tuple, raw["recalls"])),
            Passage.read(tensors, "long") if "long.ids" in tensors else None,
        )
    for stored_passage in (*answers.passages, *([] if answers.long is None else [answers.long])):
        if not bool(
            torch.isfinite(stored_passage.logs).all() and torch.isfinite(stored_passage.text_logs).all()
        ):
            raise GateError("the reference's answers hold NaN or infinity", where=str(directory))
    return answers
