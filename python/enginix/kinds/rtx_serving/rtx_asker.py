"""Ask an engine of kind ``rtx`` the gates' questions, by the loop that serves it.

The answers are written to said.json and said.safetensors, which
enginix.evaluation.engine_judgement.answer_record reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from enginix import console
from enginix.errors import GateError
from enginix.evaluation.engine_protocol import answers_origin
from enginix.evaluation.engine_protocol.engine_questions import TokenizedText, read_engine_questions
from enginix.files import dump_json, write_text
from enginix.kinds.rtx_serving.slot_scheduler import SlotScheduler
from enginix.kinds.rtx_serving.slot_sequences import SlotSequences
from enginix.kinds.rtx_serving.step_backend import StepBackend
from enginix.reference.scheduler import GenerationEvent, GenerationRequest
from enginix.work_directory import new_directory

ANSWERS_FILE, TENSORS = "said.json", "said.safetensors"
_PROGRESS_SECONDS = 5.0
# Runs, and the scores of texts, that some gates alone need.
_RUNS_OF = {"again": {"invariance"}, "alone": {"invariance"}, "recalls": {"context"}}
_SCORED_BY = {"agreement", "perplexity"}


@dataclass(frozen=True)
class AskingTimes:
    """What asking took, for people.

    Attributes:
        first_step: seconds of the first step, in which NVIDIA's runtime compiles kernels.
        steps: number of the later steps that scored texts, and ``step`` the seconds of one of them.
    """

    first_step: float
    steps: int
    step: float


def ask_rtx_engine(
    engine: Path,
    questions_file: Path,
    out: Path,
    backend: StepBackend,
    gates: Collection[str],
    stall: float = 1800.0,
) -> AskingTimes:
    """Ask an engine the questions of some gates; ``out`` is complete at the end, or absent.

    Args:
        questions_file: asked.json, or its directory.
        backend: executes the engine; closed at the end.
        gates: those that will judge the answers; what none of them needs is not asked.
        stall: seconds without an answer after which the engine counts as hung.

    Raises:
        GateError: a request failed, or the engine hung.
    """
    question_set = read_engine_questions(questions_file)
    limit = backend.shape.max_seq_len
    sequences, scheduler = SlotSequences(backend), None
    try:
        begun = time.monotonic()
        sequences.run_step({0: question_set.prompts[0].tokens[:1]}, [0])
        first_step = time.monotonic() - begun
        scheduler = SlotScheduler(backend)
        ends = frozenset(question_set.ends)

        def run(name: str, texts: Sequence[TokenizedText], most: int, *, alone: bool) -> list[Any]:
            assert scheduler is not None
            fitting = [n for n, text in enumerate(texts) if len(text.tokens) < limit]
            answers: list[Any] = [None] * len(texts)
            if not _RUNS_OF.get(name, set(gates)) & set(gates):
                return answers
            for group in [[n] for n in fitting] if alone else [fitting]:
                requests = [
                    GenerationRequest(f"{name}-{n}", texts[n].tokens, most, end_ids=ends) for n in group
                ]
                for n, answer in zip(group, _collect_answers(scheduler, requests, stall), strict=True):
                    answers[n] = answer
            console.print_message(f"{name}: {len(fitting)} answers")
            return answers

        prompts, most = question_set.prompts, question_set.continued
        runs = {
            "batch": run("batch", prompts, most, alone=False),
            "again": run("again", prompts, most, alone=False),
            "alone": run("alone", prompts, most, alone=True),
            "replies": run("replies", question_set.questions, question_set.answered, alone=False),
            "recalls": run("recalls", question_set.recalls, question_set.answered, alone=False),
        }
        # The scheduler is idle from here on, and the slots are free.
        begun = time.monotonic()
        following = [
            (f"next.{n}.", (*prompts[n].tokens, *answer["tokens"]), len(prompts[n].tokens))
            for n, answer in enumerate(runs["batch"])
            if answer is not None
        ]
        tensors, steps = _score_texts(sequences, following, question_set.vocab_size, question_set.next, False)
        is_scored = bool(_SCORED_BY & set(gates))
        texts = [text.tokens[:limit] for text in question_set.passages] if is_scored else []
        passages = [(f"{n}.", tokens, 1) for n, tokens in enumerate(texts)]
        vocab_size, most_kept = question_set.vocab_size, question_set.kept
        scores, further_steps = _score_texts(sequences, passages, vocab_size, most_kept, True)
        tensors, steps = {**tensors, **scores}, steps + further_steps
        times = AskingTimes(first_step, steps, (time.monotonic() - begun) / max(1, steps))
        record = {
            "format": 1,
            "material": question_set.material,
            "kind": "rtx",
            "by": backend.describe(),
            "runs": runs,
            "passages": [len(tokens) for tokens in texts],
            "absent": {} if is_scored else {"passages": "no gate asked for them"},
            "limit": limit,
            "longest": limit - 1,
        }
    finally:
        if scheduler is not None:
            scheduler.close(60.0)
        backend.close()
    with new_directory(out) as partial:
        save_file(tensors, str(partial / TENSORS))
        write_text(partial / ANSWERS_FILE, dump_json(record))
        answers_origin.write_answers_origin(engine, partial)
    return times


def _collect_answers(
    scheduler: SlotScheduler, requests: Sequence[GenerationRequest], stall: float
) -> list[dict[str, Any]]:
    """Run requests together, and return their tokens and why each ended."""
    events: dict[str, list[GenerationEvent]] = {request.id: [] for request in requests}
    changed, ended = threading.Condition(), list[str]()

    def hear(event: GenerationEvent) -> None:
        with changed:
            events[event.id].append(event)
            if event.finish is not None:
                ended.append(event.id)
            changed.notify()

    for request in requests:
        scheduler.add(request, hear)
    with changed:
        while len(ended) < len(requests):
            if not changed.wait(stall):
                raise GateError(f"no answer for {stall:.0f} s", fix="report it with the engine's manifest")
    failed = [event for one in events.values() for event in one if event.error is not None]
    if failed:
        raise GateError(f"the engine failed: {failed[0].error}", fix="report it with this message")
    return [
        {
            "tokens": [event.token for event in events[request.id] if event.token is not None],
            "finish": events[request.id][-1].finish,
        }
        for request in requests
    ]


Text = tuple[str, Sequence[int], int]


def _cut_text(sequences: SlotSequences, tokens: Sequence[int], start: int) -> list[Sequence[int]]:
    """Return the pieces of a text: whole ones up to ``start`` tokens, and then one token each."""
    size = sequences.backend.shape.step_tokens
    pieces = [tokens[first : min(first + size, start)] for first in range(0, start, size)]
    # What follows the last token is not asked for.
    return [*pieces, *(tokens[at : at + 1] for at in range(start, len(tokens) - 1))]


def _score_texts(
    sequences: SlotSequences, texts: Sequence[Text], vocab_size: int, top_count: int, has_text: bool
) -> tuple[dict[str, torch.Tensor], int]:
    """Return the distributions of the tokens of texts from position ``start`` on, and the steps taken.

    Args:
        texts: prefix of the tensors' names, tokens, and ``start``, which is at least 1.
        top_count: most likely tokens that are stored of each position.
        has_text: keep the log-probability of each token of the text as well.
    """
    tensors: dict[str, torch.Tensor] = {}
    shown, steps, slots = time.monotonic(), 0, sequences.backend.shape.slots
    for first in range(0, len(texts), slots):
        group = texts[first : first + slots]
        pieces = [_cut_text(sequences, tokens, start) for _, tokens, start in group]
        ids: list[list[torch.Tensor]] = [[] for _ in group]
        logs: list[list[torch.Tensor]] = [[] for _ in group]
        text_logs: list[list[torch.Tensor]] = [[] for _ in group]
        done = [0] * len(group)
        steps += max(map(len, pieces))
        for step in range(max(map(len, pieces))):
            current = {slot: parts[step] for slot, parts in enumerate(pieces) if step < len(parts)}
            logits = sequences.run_step(current, list(current) if step == 0 else [])
            for slot, row in zip(current, logits, strict=True):
                _, tokens, start = group[slot]
                done[slot] += len(current[slot])
                if done[slot] < start or done[slot] >= len(tokens):
                    continue
                distribution = row[:vocab_size].float().log_softmax(-1).cpu()
                top_logs, top_ids = distribution.topk(min(top_count, len(distribution)))
                ids[slot].append(top_ids.to(torch.int32))
                logs[slot].append(top_logs)
                text_logs[slot].append(distribution[tokens[done[slot]]])
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                console.print_message(f"scoring texts: step {step + 1} of {max(map(len, pieces))}")
        for slot, (prefix, _, _) in enumerate(group):
            if not ids[slot]:  # a text of one token
                continue
            tensors[f"{prefix}ids"] = torch.stack(ids[slot])
            tensors[f"{prefix}logs"] = torch.stack(logs[slot])
            if has_text:
                tensors[f"{prefix}text"] = torch.stack(text_logs[slot])
    return tensors, steps
