"""The gates of quality: each compares an engine's answers with the reference's.

Every function returns a :class:`GateOutcome` or raises; the runner treats an exception as a failed gate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from enginix.errors import GateError
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers.answers import ANSWERED, CONTINUED, Passage, ReferenceAnswers
from enginix.evaluation.reference_answers.exact_answers import contains_answer
from enginix.evaluation.reference_answers.material import GateQuestion, GateTokenizer, Material
from enginix.evaluation.reference_answers.subject import Subject

TOP_K = 5
BLOCK = 32  # consecutive tokens that count as one observation
NORMAL_95 = 1.96
SIGNIFICANT = 0.05


def round_figure(value: float) -> float:
    """Round to three significant digits, because evidence must not depend on the order of sums.

    Below 1e-9 there is nothing but that order.
    """
    return float(f"{value:.3g}") if abs(value) >= 1e-9 else 0.0


def average_blocks(marks: Sequence[Sequence[float]], block: int) -> list[dict[str, Any]]:
    """Return the average of marks on each block of consecutive positions, over several texts, as evidence."""
    rows = []
    for start in range(0, max(map(len, marks)), block):
        values = [value for row in marks for value in row[start : start + block]]
        rows.append({"from": start, "top1": round_figure(sum(values) / len(values)), "tokens": len(values)})
    return rows


def judge_agreement(
    engine_passages: Sequence[Passage],
    kl: Sequence[torch.Tensor],
    answers: ReferenceAnswers,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Judge most likely tokens and next-token distributions on the evaluation text.

    Args:
        engine_passages: the engine's distributions.
        kl: Kullback-Leibler divergence of the reference from the engine at each position, in nats.
        bounds: ``top1`` at least, ``kl`` at most on average.
    """
    same = [(a.ids[:, 0] == b.ids[:, 0]) for a, b in zip(engine_passages, answers.passages, strict=True)]
    overlap = [
        (a.ids[:, :TOP_K, None] == b.ids[:, None, :TOP_K]).any(-1).float().mean(-1)
        for a, b in zip(engine_passages, answers.passages, strict=True)
    ]
    top1, topk = (float(torch.cat([t.float() for t in ts]).mean()) for ts in (same, overlap))
    every = torch.cat(list(kl))
    mean, worst = float(every.mean()), float(every.quantile(0.99))
    passed = top1 >= bounds["top1"] and mean <= bounds["kl"]
    summary = (
        f"most likely token equal at {top1:.1%} of {len(every)} positions ({bounds['top1']:.1%} required), "
        f"top {TOP_K} {topk:.1%}, mean KL {mean:.2g} ({bounds['kl']:g} allowed)"
    )
    detail = {
        **bounds,
        "positions": len(every),
        "top1Found": round_figure(top1),
        "top5Found": round_figure(topk),
        "klFound": round_figure(mean),
        "kl99Found": round_figure(worst),
        "byPosition": average_blocks([t.tolist() for t in same], BLOCK),
    }
    return GateOutcome("agreement", passed, summary, detail)


def compute_divergence(logs: torch.Tensor, reference_passage: Passage) -> torch.Tensor:
    """Return the reference's Kullback-Leibler divergence from the engine by position, nats, float64 [T - 1].

    It is taken over the reference's most likely tokens and all others as one, a lower bound of the whole.

    Args:
        logs: the engine's log-probabilities [T - 1, vocab_size].
        reference_passage: the reference's, on the same device.
    """
    q = logs.gather(1, reference_passage.ids.long()).double()
    p = reference_passage.logs.double()
    rest_p = (1 - p.exp().sum(-1)).clamp(min=1e-12)
    rest_q = (1 - q.exp().sum(-1)).clamp(min=1e-12)
    total: torch.Tensor = (p.exp() * (p - q)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return total.clamp(min=0)


def judge_activations(
    kl: Sequence[torch.Tensor],
    unrounded_kl: Sequence[torch.Tensor],
    bounds: dict[str, Any],
    *,
    has_cache: bool,
) -> GateOutcome:
    """Judge what rounded activations and a rounded cache add to the divergence of rounded weights.

    The weights are compared with the model's elsewhere. So their divergence measures the model's own
    sensitivity, and scales of activations are judged alike in models of every size.

    Args:
        kl: divergence of the engine on some passages, by position.
        unrounded_kl: the same, where only weights are rounded.
        bounds: ``growth``, of the mean divergence, and ``cacheGrowth``, times that with a quantized cache.
    """
    rounded, unrounded = (float(torch.cat(list(part)).mean()) for part in (kl, unrounded_kl))
    most = bounds["growth"] * (bounds["cacheGrowth"] if has_cache else 1)
    growth = rounded / max(unrounded, 1e-12)
    summary = f"mean KL {rounded:.2g}, of weights alone {unrounded:.2g}: × {growth:.3g} ({most:.3g} allowed)"
    detail = {
        **bounds,
        "klFound": round_figure(rounded),
        "klOfWeights": round_figure(unrounded),
        "growthFound": round_figure(growth),
        "growthAllowed": round_figure(most),
    }
    return GateOutcome("activations", growth <= most, summary, detail)


def judge_perplexity(
    engine_passages: Sequence[Passage], answers: ReferenceAnswers, bounds: dict[str, Any]
) -> GateOutcome:
    """Judge perplexity on the evaluation text over the reference's, with its confidence interval.

    Both score the same text token by token, so the difference has a much smaller spread than either score.
    """
    worse = [
        (b.text_logs - a.text_logs).double() for a, b in zip(engine_passages, answers.passages, strict=True)
    ]
    blocks = [float(part.mean()) for passage in worse for part in torch.split(passage, BLOCK)]
    if len(blocks) < 2:
        raise GateError(f"{len(blocks)} blocks of {BLOCK} tokens: too little text for an interval")
    mean = float(torch.cat(worse).mean())
    spread = NORMAL_95 * statistics.stdev(blocks) / math.sqrt(len(blocks))
    engine_perplexity, reference_perplexity = (
        math.exp(-float(torch.cat([p.text_logs.double() for p in ps]).mean()))
        for ps in (engine_passages, answers.passages)
    )
    ratio, low, high = (math.exp(x) for x in (mean, mean - spread, mean + spread))
    passed = high <= bounds["ratio"]
    summary = (
        f"{engine_perplexity:.4g}, the reference {reference_perplexity:.4g}: × {ratio:.4f} "
        f"(95% interval {low:.4f} to {high:.4f}), {bounds['ratio']:g} allowed"
    )
    detail = {
        **bounds,
        "found": round_figure(engine_perplexity),
        "reference": round_figure(reference_perplexity),
        "ratioFound": float(f"{ratio:.4g}"),
        "interval": [float(f"{low:.4g}"), float(f"{high:.4g}")],
        "tokens": sum(map(len, worse)),
    }
    return GateOutcome("perplexity", passed, summary, detail)


def judge_task(
    subject: Subject,
    material: Material,
    answers: ReferenceAnswers,
    tokenizer: GateTokenizer,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Judge questions with exact answers: not significantly more lost than won against the reference."""
    replies = subject.generate([q.tokens for q in material.questions], ANSWERED, answers.ends)
    return _compare_replies(
        "task", material.questions, replies, answers.replies, answers.ends, tokenizer, bounds
    )


def judge_context(
    subject: Subject,
    material: Material,
    answers: ReferenceAnswers,
    tokenizer: GateTokenizer,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Judge facts planted in long texts and asked for at their ends, as :func:`judge_task` does.

    Only texts that fit the engine count; its limit may be below its model's.
    """
    fits = [n for n, q in enumerate(material.recalls) if len(q.tokens) + ANSWERED <= subject.max_length]
    if not fits:
        raise GateError(
            f"the engine accepts {subject.max_length} tokens: no text with a planted fact fits",
            fix="build it for longer sequences, or leave the gate context out",
        )
    recall_questions = [material.recalls[n] for n in fits]
    replies = subject.generate([q.tokens for q in recall_questions], ANSWERED, answers.ends)
    reference_replies = [answers.recalls[n] for n in fits]
    # The texts have thousands of tokens; length and depth identify them.
    named = [replace(q, text=q.id) for q in recall_questions]
    outcome = _compare_replies("context", named, replies, reference_replies, answers.ends, tokenizer, bounds)
    longest = max(len(q.tokens) for q in recall_questions)
    summary = f"facts found at up to {longest} tokens: {outcome.summary}"
    return replace(outcome, summary=summary, detail={**outcome.detail, "longest": longest})


def _wilson_interval(right: int, of: int) -> list[float]:
    """Return Wilson's 95% interval of a share."""
    share, square = right / of, NORMAL_95**2 / of
    middle = (share + square / 2) / (1 + square)
    spread = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return [round_figure(max(0.0, middle - spread)), round_figure(min(1.0, middle + spread))]


def _compare_replies(
    gate: str,
    questions: Sequence[GateQuestion],
    replies: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    ends: frozenset[int],
    tokenizer: GateTokenizer,
    bounds: dict[str, Any],
) -> GateOutcome:
    rows = []
    for question, engine_reply, reference_reply in zip(questions, replies, references, strict=True):
        texts = [
            tokenizer.decode([t for t in reply if t not in ends]) for reply in (engine_reply, reference_reply)
        ]
        rows.append((question, texts, [contains_answer(text, question.answer) for text in texts]))
    score, reference = (sum(marks[who] for _, _, marks in rows) for who in (0, 1))
    if not reference:
        raise GateError(
            "the reference answers none of the questions, so they cannot judge an engine of this model",
            fix=f"pass questions that the model can answer, or leave the gate {gate} out",
        )
    lost, won = sum(m == [False, True] for _, _, m in rows), sum(m == [True, False] for _, _, m in rows)
    # Sign test: the probability of so many losses if losing and winning were equally likely.
    chance = sum(math.comb(lost + won, k) for k in range(lost, lost + won + 1)) / 2 ** (lost + won)
    least = math.ceil(bounds["share"] * reference)
    passed = score >= least and (chance > SIGNIFICANT or not lost)
    summary = (
        f"{score} of {len(rows)} right, the reference {reference}; lost {lost}, won {won} (p {chance:.2g})"
    )
    detail = {
        **bounds,
        "score": score,
        "referenceScore": reference,
        "questions": len(rows),
        "interval": _wilson_interval(score, len(rows)),
        "lost": lost,
        "won": won,
        "p": round_figure(chance),
        "replies": [
            {"question": q.text, "answer": q.answer, "engine": t[0], "reference": t[1], "right": m}
            for q, t, m in rows
        ],
    }
    return GateOutcome(gate, passed, summary, detail)


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Return whether an answer ends in at least four repetitions, and 24 tokens, of up to 12 tokens."""
    for period in range(1, 13):
        length = max(4 * period, 24)
        if len(tokens) >= length and all(
            tokens[-i] == tokens[-i - period] for i in range(1, length - period + 1)
        ):
            return True
    return False


def judge_smoke(
    subject: Subject,
    material: Material,
    answers: ReferenceAnswers,
    tokenizer: GateTokenizer,
    bounds: dict[str, Any],
) -> GateOutcome:
    """Judge prompts in several languages: answers are not empty, do not loop, and stop."""
    continuations = subject.generate([p.tokens for p in material.prompts], CONTINUED, answers.ends)
    replies = subject.generate([q.tokens for q in material.questions], ANSWERED, answers.ends)
    if len(continuations) != len(material.prompts) or len(replies) != len(material.questions):
        raise GateError(f"{len(continuations) + len(replies)} answers: some prompts got none")
    empty, outside, beyond = [], [], []
    for prompt, engine_tokens, reference_tokens in zip(
        material.prompts, continuations, answers.continuations, strict=True
    ):
        visible_tokens = [
            [t for t in tokens if t not in answers.ends] for tokens in (engine_tokens, reference_tokens)
        ]
        if not engine_tokens or (visible_tokens[1] and not visible_tokens[0]):
            empty.append(prompt.id)
        if any(not 0 <= t < subject.vocab_size for t in engine_tokens):
            outside.append(prompt.id)
        if any(t in answers.ends for t in engine_tokens[:-1]) or len(engine_tokens) > CONTINUED:
            beyond.append(prompt.id)
    early = [
        question.id
        for question, reply in zip(material.questions, replies, strict=True)
        if reply
        and reply[-1] not in answers.ends
        and len(reply) < min(ANSWERED, subject.max_length - len(question.tokens))
    ]
    late = [
        question.id
        for question, reply in zip(material.questions, replies, strict=True)
        if any(t in answers.ends for t in reply[:-1])
    ]
    looping, reference_looping = (
        sum(map(ends_in_loop, texts)) for texts in (continuations, answers.continuations)
    )
    stops, reference_stops = (
        sum(bool(r) and r[-1] in answers.ends for r in texts) for texts in (replies, answers.replies)
    )
    allowed = reference_looping + math.ceil(bounds["loops"] * len(continuations))
    required_stops = math.floor(bounds["stops"] * reference_stops)
    faults = [
        *([f"empty answers to {', '.join(empty)}"] if empty else []),
        *([f"tokens that do not exist in {', '.join(outside)}"] if outside else []),
        *([f"tokens after an end token in {', '.join([*beyond, *late])}"] if beyond or late else []),
        *([f"{len(early)} replies stop at a token that ends none of the model's"] if early else []),
        *([f"{looping} answers loop, {allowed} allowed"] if looping > allowed else []),
        *([f"{stops} answers stop, {required_stops} required"] if stops < required_stops else []),
    ]
    summary = "; ".join(faults) or (
        f"{len(continuations)} prompts: none empty, {looping} loop (the reference {reference_looping}), "
        f"{stops} of {len(replies)} replies stop (the reference {reference_stops})"
    )
    detail = {
        **bounds,
        "loopsFound": looping,
        "loopsReference": reference_looping,
        "stopsFound": stops,
        "stopsReference": reference_stops,
        "answers": [
            {"prompt": p.text, "engine": tokenizer.decode(a), "reference": tokenizer.decode(b)}
            for p, a, b in zip(material.prompts, continuations, answers.continuations, strict=True)
        ],
    }
    return GateOutcome("smoke", not faults, summary, detail)


def judge_invariance(
    subject: Subject,
    material: Material,
    answers: ReferenceAnswers,
    bounds: dict[str, Any],
    ask_again: Callable[..., list[list[int]]] | None = None,
) -> GateOutcome:
    """Compare a prompt's answers alone and in a batch, once and twice: equal tokens, or an allowed tie.

    Args:
        ask_again: asks the engine what it has answered before; None where the subject always does.
    """
    prompts = [p.tokens for p in material.prompts]
    batch = subject.generate(prompts, CONTINUED, answers.ends)
    again = (ask_again or subject.generate)(prompts, CONTINUED, answers.ends)
    alone = subject.generate(prompts, CONTINUED, answers.ends, together=False)
    faults, ties = [], 0
    for prompt, first, second, single in zip(material.prompts, batch, again, alone, strict=True):
        for what, one, other in (("repeated", first, second), ("alone", single, first)):
            if one == other and one:
                continue
            gap = _logit_gap(subject, prompt.tokens, one, other)
            if gap > subject.tie:
                faults.append(f"{prompt.id} {what}: another token, by {gap:.2g} in the logits")
            ties += gap <= subject.tie
    summary = (
        "; ".join(faults[:3]) or f"{len(prompts)} prompts alone, in a batch, and again: equal ({ties} ties)"
    )
    return GateOutcome("invariance", not faults, summary, {**bounds, "faults": faults, "ties": ties})


def _logit_gap(subject: Subject, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> float:
    """Return the logit gap of the first tokens that differ in two answers; infinite if one is missing."""
    position = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if position is None:
        return math.inf
    (logits,) = subject.logits([[*prompt, *one[:position]]])
    return abs(float(logits[-1, one[position]] - logits[-1, other[position]]))
