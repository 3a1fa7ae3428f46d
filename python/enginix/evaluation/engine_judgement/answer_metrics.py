"""Gates for which an engine's own runtime gives other evidence than the reference executor."""

from __future__ import annotations

import math
from typing import Any

import torch

from enginix.errors import GateError
from enginix.evaluation.engine_judgement.answer_record import (
    LONGER,
    EngineAnswers,
    GreedyAnswer,
    NextTokenLogs,
)
from enginix.evaluation.engine_protocol.engine_questions import EngineQuestions
from enginix.evaluation.judgement import quality
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers.answers import Passage, ReferenceAnswers

BLOCK = 8  # positions of an answer that are reported together


def judge_greedy(
    engine_answers: EngineAnswers,
    question_set: EngineQuestions,
    answers: ReferenceAnswers,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Compare greedy answers with the reference's, token by token, up to the first difference.

    Up to the first different token both read the same text; later tokens cannot be compared. So an answer
    counts its equal tokens, and one that differs.

    Raises:
        GateError: no answer could be compared.
    """
    ends = answers.ends
    pairs = [
        (engine_answer, list(reference_tokens), min(limit, engine_answers.limit - len(text.tokens)))
        for run, prompts, texts, limit in (
            ("batch", question_set.prompts, answers.continuations, question_set.continued),
            ("replies", question_set.questions, answers.replies, question_set.answered),
        )
        for engine_answer, text, reference_tokens in zip(
            engine_answers.runs[run], prompts, texts, strict=True
        )
    ]
    same: list[list[bool]] = []
    unasked = 0
    for engine_answer, reference_tokens, token_limit in pairs:
        if engine_answer is None:
            unasked += 1
            continue
        tokens = engine_answer.ended(ends)
        marks = []
        for n, token in enumerate(reference_tokens):
            if n >= len(tokens):
                # Ended by its length: no further token was requested if it has that length. Ended by
                # an end token, or cut short: it differs where the reference continues.
                marks += [False] if engine_answer.finish == "stop" or n < token_limit else []
                break
            # The runtime may choose any of several end tokens.
            marks.append(tokens[n] == token or (tokens[n] in ends and token in ends))
            if not marks[-1]:
                break
        same.append(marks)
    total, equal = sum(map(len, same)), sum(map(sum, same))
    if not total or unasked:
        raise GateError(
            f"{unasked} of {len(pairs)} prompts do not fit the engine's limits"
            if unasked
            else "no answer could be compared",
            fix=LONGER,
        )
    share = equal / total
    whole = sum(all(marks) for marks in same)
    summary = (
        f"{share:.1%} of {total} greedy tokens equal the reference's ({bounds['top1']:.1%} required); "
        f"{whole} of {len(same)} answers are the same throughout"
    )
    detail = {
        **bounds,
        "positions": total,
        "top1Found": quality.round_figure(share),
        "same": whole,
        "answers": len(same),
        "byPosition": quality.average_blocks(same, BLOCK),
    }
    return GateOutcome("greedy", share >= bounds["top1"], summary, detail)


def judge_recorded_invariance(
    engine_answers: EngineAnswers,
    question_set: EngineQuestions,
    ends: frozenset[int],
    tie: float,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Compare the answers to a prompt in a batch, again, and alone: equal tokens, or equally likely ones.

    Raises:
        GateError: a prompt that does not fit the engine.
    """
    faults, ties = [], 0
    runs = [engine_answers.runs[name] for name in ("batch", "again", "alone")]
    for n, (prompt, first, second, single) in enumerate(zip(question_set.prompts, *runs, strict=True)):
        if first is None or second is None or single is None:
            raise GateError(f"prompt {prompt.id} does not fit the engine's limits")
        for what, other in (("repeated", second), ("alone", single)):
            if first.ended(ends) == other.ended(ends) and first.tokens:
                continue
            gap = _recorded_gap(first, other, engine_answers.next.get(n))
            if gap <= tie:
                ties += 1
            else:
                why = f"by {gap:.2g} in the logits" if math.isfinite(gap) else "not an equally likely one"
                faults.append(f"{prompt.id} {what}: another token, {why}")
    summary = (
        f"{len(faults)} differ: " + "; ".join(faults[:3])
        if faults
        else f"{len(question_set.prompts)} prompts alone, in a batch, and again: equal ({ties} ties)"
    )
    return GateOutcome(
        "invariance", not faults, summary, {**bounds, "tie": tie, "faults": faults, "ties": ties}
    )


def _recorded_gap(one: GreedyAnswer, other: GreedyAnswer, following: NextTokenLogs | None) -> float:
    """Return the logit gap of the first tokens that differ in two answers; infinite if it is not known."""
    position = next(
        (i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), None
    )
    if position is None or following is None or position >= len(following.ids):
        return math.inf
    logs_by_token = dict(
        zip(following.ids[position].tolist(), following.logs[position].tolist(), strict=True)
    )
    if one.tokens[position] not in logs_by_token or other.tokens[position] not in logs_by_token:
        return math.inf
    gap = abs(logs_by_token[one.tokens[position]] - logs_by_token[other.tokens[position]])
    return gap if math.isfinite(gap) else math.inf


def select_scored_passages(
    engine_answers: EngineAnswers, answers: ReferenceAnswers
) -> tuple[list[Passage], list[torch.Tensor], ReferenceAnswers]:
    """Return the engine's distributions, their divergences, and the reference answers on the same positions.

    Raises:
        GateError: the runtime gave no distributions, fewer than texts, or values that are not finite.
    """
    if "passages" in engine_answers.absent or not engine_answers.passages:
        raise GateError(f"no evidence: {engine_answers.absent.get('passages', 'the runtime scored no text')}")
    if len(engine_answers.passages) != len(answers.passages):
        raise GateError(
            f"{len(engine_answers.passages)} texts scored, {len(answers.passages)} were requested"
        )
    reference_passages, divergences = [], []
    for engine_passage, reference_passage in zip(engine_answers.passages, answers.passages, strict=True):
        length = len(engine_passage.ids)
        if not bool(
            torch.isfinite(engine_passage.logs).all() and torch.isfinite(engine_passage.text_logs).all()
        ):
            raise GateError("log-probabilities hold NaN or infinity")
        cut = Passage(
            reference_passage.ids[:length],
            reference_passage.logs[:length],
            reference_passage.text_logs[:length],
        )
        reference_passages.append(cut)
        divergences.append(bound_divergence(engine_passage, cut))
    cut_answers = ReferenceAnswers(**{**vars(answers), "passages": tuple(reference_passages)})
    return list(engine_answers.passages), divergences, cut_answers


def bound_divergence(engine_passage: Passage, reference_passage: Passage) -> torch.Tensor:
    """Return a lower bound of the reference's divergence from the engine at each position, nats, float64.

    Both are known at their most likely tokens. A token of the reference's that the engine does not list has
    at most the probability of the engine's last listed token, which is used for it; all other tokens count as
    one. So the result is at most the Kullback-Leibler divergence over the vocabulary.
    """
    match = reference_passage.ids[:, :, None] == engine_passage.ids[:, None, :]
    listed = match.any(-1)
    match_index = match.long().argmax(-1)
    least = engine_passage.logs.min(-1, keepdim=True).values.double()
    q = torch.where(listed, engine_passage.logs.double().gather(1, match_index), least)
    p = reference_passage.logs.double()
    rest_p = (1 - p.exp().sum(-1)).clamp(min=1e-12)
    # The probability of a listed token is not part of the remainder; that of an unlisted token may be.
    rest_q = (1 - (q.exp() * listed).sum(-1)).clamp(min=1e-12)
    total: torch.Tensor = (p.exp() * (p - q)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return total.clamp(min=0)
