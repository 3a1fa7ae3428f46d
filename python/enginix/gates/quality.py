"""The gates of quality: each compares what an engine said with what the reference said.

Every function gives an :class:`Outcome`, or raises; whoever runs them counts an exception as a no.
"""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from enginix.errors import GateError
from enginix.gates.answers import ANSWERED, CONTINUED, Answers, Passage
from enginix.gates.material import Material, Question, Tokenizer
from enginix.gates.outcome import Outcome
from enginix.gates.subject import Subject

TOP_K = 5
BLOCK = 32  # consecutive tokens that count as one observation
NORMAL_95 = 1.96
SIGNIFICANT = 0.05


def rounded(value: float) -> float:
    """Three significant digits: evidence must not depend on the order of sums."""
    return float(f"{value:.3g}")


def agreement(
    own: Sequence[Passage], kl: Sequence[torch.Tensor], answers: Answers, bounds: dict[str, Any]
) -> Outcome:
    """Most likely tokens and next-token distributions on the evaluation text.

    Args:
        own: the engine's distributions.
        kl: Kullback-Leibler divergence of the reference from the engine at each position, in nats.
        bounds: ``top1`` at least, ``kl`` at most on average.
    """
    same = [(a.ids[:, 0] == b.ids[:, 0]) for a, b in zip(own, answers.passages, strict=True)]
    overlap = [
        (a.ids[:, :TOP_K, None] == b.ids[:, None, :TOP_K]).any(-1).float().mean(-1)
        for a, b in zip(own, answers.passages, strict=True)
    ]
    top1, topk = (float(torch.cat([t.float() for t in ts]).mean()) for ts in (same, overlap))
    every = torch.cat(list(kl))
    mean, worst = float(every.mean()), float(every.quantile(0.99))
    passed = top1 >= bounds["top1"] and mean <= bounds["kl"]
    by_position = []
    for start in range(0, max(map(len, same)), BLOCK):
        here = torch.cat([t[start : start + BLOCK].float() for t in same])
        by_position.append({"from": start, "top1": rounded(float(here.mean())), "tokens": len(here)})
    summary = (
        f"most likely token equal at {top1:.1%} of {len(every)} positions ({bounds['top1']:.1%} asked), "
        f"top {TOP_K} {topk:.1%}, mean KL {mean:.2g} ({bounds['kl']:g} allowed)"
    )
    detail = {
        **bounds,
        "positions": len(every),
        "top1Found": rounded(top1),
        "top5Found": rounded(topk),
        "klFound": rounded(mean),
        "kl99Found": rounded(worst),
        "byPosition": by_position,
    }
    return Outcome("agreement", passed, summary, detail)


def divergence(logs: torch.Tensor, kept: Passage) -> torch.Tensor:
    """Kullback-Leibler divergence of the reference from the engine at each position, nats, float64 [T - 1].

    Over the reference's most likely tokens and all others together: at most what it is over the vocabulary.

    Args:
        logs: the engine's log-probabilities [T - 1, vocab_size].
        kept: the reference's, on the same device.
    """
    q = logs.gather(1, kept.ids.long()).double()
    p = kept.logs.double()
    rest_p = (1 - p.exp().sum(-1)).clamp(min=1e-12)
    rest_q = (1 - q.exp().sum(-1)).clamp(min=1e-12)
    total: torch.Tensor = (p.exp() * (p - q)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return total.clamp(min=0)


def perplexity(own: Sequence[Passage], answers: Answers, bounds: dict[str, Any]) -> Outcome:
    """Perplexity on the evaluation text over the reference's, with its confidence interval.

    Token by token the same text is scored twice, so the difference has a much smaller spread than either.
    """
    worse = [(b.text_logs - a.text_logs).double() for a, b in zip(own, answers.passages, strict=True)]
    blocks = [float(part.mean()) for passage in worse for part in torch.split(passage, BLOCK)]
    if len(blocks) < 2:
        raise GateError(f"{len(blocks)} blocks of {BLOCK} tokens: too little text for an interval")
    mean = float(torch.cat(worse).mean())
    spread = NORMAL_95 * statistics.stdev(blocks) / math.sqrt(len(blocks))
    ours, theirs = (
        math.exp(-float(torch.cat([p.text_logs.double() for p in ps]).mean()))
        for ps in (own, answers.passages)
    )
    ratio, low, high = (math.exp(x) for x in (mean, mean - spread, mean + spread))
    passed = high <= bounds["ratio"]
    summary = (
        f"{ours:.4g}, the reference {theirs:.4g}: × {ratio:.4f} (95% interval {low:.4f} to {high:.4f}), "
        f"{bounds['ratio']:g} allowed"
    )
    detail = {
        **bounds,
        "found": rounded(ours),
        "reference": rounded(theirs),
        "ratioFound": float(f"{ratio:.4g}"),
        "interval": [float(f"{low:.4g}"), float(f"{high:.4g}")],
        "tokens": sum(map(len, worse)),
    }
    return Outcome("perplexity", passed, summary, detail)


def right(reply: str, answer: str) -> bool:
    """Whether ``answer`` stands in ``reply`` as a word of its own."""
    reply, answer = (unicodedata.normalize("NFKC", text).casefold() for text in (reply, answer))
    if not answer.isascii():  # scripts without spaces
        return answer in reply
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)", reply) is not None


def task(
    subject: Subject, material: Material, answers: Answers, tokenizer: Tokenizer, bounds: dict[str, Any]
) -> Outcome:
    """Questions with exact answers: not significantly more lost than won against the reference."""
    replies = subject.generate([q.tokens for q in material.questions], ANSWERED, answers.ends)
    return _compared("task", material.questions, replies, answers.replies, answers.ends, tokenizer, bounds)


def context(
    subject: Subject, material: Material, answers: Answers, tokenizer: Tokenizer, bounds: dict[str, Any]
) -> Outcome:
    """Facts planted in long texts, asked for at their ends: judged as :func:`task` is.

    Asked is what fits the engine, which may take less than its model does.
    """
    fits = [n for n, q in enumerate(material.recalls) if len(q.tokens) + ANSWERED <= subject.max_length]
    if not fits:
        raise GateError(
            f"the engine takes {subject.max_length} tokens: no text with a planted fact fits",
            fix="build it for longer sequences, or leave the gate context out",
        )
    asked = [material.recalls[n] for n in fits]
    replies = subject.generate([q.tokens for q in asked], ANSWERED, answers.ends)
    theirs = [answers.recalls[n] for n in fits]
    # The texts are thousands of tokens; their length and depth tell which it was.
    named = [replace(q, text=q.id) for q in asked]
    found = _compared("context", named, replies, theirs, answers.ends, tokenizer, bounds)
    longest = max(len(q.tokens) for q in asked)
    summary = f"facts found at up to {longest} tokens: {found.summary}"
    return replace(found, summary=summary, detail={**found.detail, "longest": longest})


def _interval(right: int, of: int) -> list[float]:
    """Wilson's 95% interval of a share."""
    share, square = right / of, NORMAL_95**2 / of
    middle = (share + square / 2) / (1 + square)
    spread = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return [rounded(max(0.0, middle - spread)), rounded(min(1.0, middle + spread))]


def _compared(
    gate: str,
    questions: Sequence[Question],
    replies: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    ends: frozenset[int],
    tokenizer: Tokenizer,
    bounds: dict[str, Any],
) -> Outcome:
    rows = []
    for question, ours, theirs in zip(questions, replies, references, strict=True):
        texts = [tokenizer.decode([t for t in reply if t not in ends]) for reply in (ours, theirs)]
        rows.append((question, texts, [right(text, question.answer) for text in texts]))
    score, reference = (sum(marks[who] for _, _, marks in rows) for who in (0, 1))
    if not reference:
        raise GateError(
            "the reference answers none of the questions: they say nothing about an engine of this model",
            fix=f"pass questions that the model can answer, or leave the gate {gate} out",
        )
    lost, won = sum(m == [False, True] for _, _, m in rows), sum(m == [True, False] for _, _, m in rows)
    # Sign test: were losing and winning equally likely, so many losses would come up with this probability.
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
        "interval": _interval(score, len(rows)),
        "lost": lost,
        "won": won,
        "p": rounded(chance),
        "replies": [
            {"question": q.text, "answer": q.answer, "engine": t[0], "reference": t[1], "right": m}
            for q, t, m in rows
        ],
    }
    return Outcome(gate, passed, summary, detail)


def loops(tokens: Sequence[int]) -> bool:
    """Whether an answer ends in at least four repetitions, and 24 tokens, of up to 12 tokens."""
    for period in range(1, 13):
        length = max(4 * period, 24)
        if len(tokens) >= length and all(
            tokens[-i] == tokens[-i - period] for i in range(1, length - period + 1)
        ):
            return True
    return False


def smoke(
    subject: Subject, material: Material, answers: Answers, tokenizer: Tokenizer, bounds: dict[str, Any]
) -> Outcome:
    """Prompts in several languages: answers that are not empty, do not loop, and stop."""
    found = subject.generate([p.tokens for p in material.prompts], CONTINUED, answers.ends)
    replies = subject.generate([q.tokens for q in material.questions], ANSWERED, answers.ends)
    if len(found) != len(material.prompts) or len(replies) != len(material.questions):
        raise GateError(f"{len(found) + len(replies)} answers: some prompts got none")
    empty, outside, beyond = [], [], []
    for prompt, ours, theirs in zip(material.prompts, found, answers.continuations, strict=True):
        said = [[t for t in tokens if t not in answers.ends] for tokens in (ours, theirs)]
        if not ours or (said[1] and not said[0]):
            empty.append(prompt.id)
        if any(not 0 <= t < subject.vocab_size for t in ours):
            outside.append(prompt.id)
        if any(t in answers.ends for t in ours[:-1]) or len(ours) > CONTINUED:
            beyond.append(prompt.id)
    looping, theirs_looping = (sum(map(loops, texts)) for texts in (found, answers.continuations))
    stops, theirs_stop = (
        sum(bool(r) and r[-1] in answers.ends for r in texts) for texts in (replies, answers.replies)
    )
    allowed = theirs_looping + math.ceil(bounds["loops"] * len(found))
    wanted = math.floor(bounds["stops"] * theirs_stop)
    faults = [
        *([f"nothing said to {', '.join(empty)}"] if empty else []),
        *([f"tokens that do not exist in {', '.join(outside)}"] if outside else []),
        *([f"goes on after an end token in {', '.join(beyond)}"] if beyond else []),
        *([f"{looping} answers loop, {allowed} allowed"] if looping > allowed else []),
        *([f"{stops} answers stop, {wanted} asked"] if stops < wanted else []),
    ]
    summary = "; ".join(faults) or (
        f"{len(found)} prompts: none empty, {looping} loop (the reference {theirs_looping}), "
        f"{stops} of {len(replies)} replies stop (the reference {theirs_stop})"
    )
    detail = {
        **bounds,
        "loopsFound": looping,
        "loopsReference": theirs_looping,
        "stopsFound": stops,
        "stopsReference": theirs_stop,
        "answers": [
            {"prompt": p.text, "engine": tokenizer.decode(a), "reference": tokenizer.decode(b)}
            for p, a, b in zip(material.prompts, found, answers.continuations, strict=True)
        ],
    }
    return Outcome("smoke", not faults, summary, detail)


def invariance(subject: Subject, material: Material, answers: Answers, bounds: dict[str, Any]) -> Outcome:
    """The same prompt alone and in a batch, once and twice: the same tokens, or an allowed tie."""
    prompts = [p.tokens for p in material.prompts]
    batch = subject.generate(prompts, CONTINUED, answers.ends)
    again = subject.generate(prompts, CONTINUED, answers.ends)
    alone = subject.generate(prompts, CONTINUED, answers.ends, together=False)
    faults, ties = [], 0
    for prompt, first, second, single in zip(material.prompts, batch, again, alone, strict=True):
        for what, one, other in (("repeated", first, second), ("alone", single, first)):
            if one == other and one:
                continue
            gap = _gap(subject, prompt.tokens, one, other)
            if gap > subject.tie:
                faults.append(f"{prompt.id} {what}: another token, by {gap:.2g} in the logits")
            ties += gap <= subject.tie
    summary = (
        "; ".join(faults[:3]) or f"{len(prompts)} prompts alone, in a batch, and again: equal ({ties} ties)"
    )
    return Outcome("invariance", not faults, summary, {**bounds, "faults": faults, "ties": ties})


def _gap(subject: Subject, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> float:
    """How far apart two tokens are where two answers part; infinite where one is missing."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if at is None:
        return math.inf
    (logits,) = subject.logits([[*prompt, *one[:at]]])
    return abs(float(logits[-1, one[at]] - logits[-1, other[at]]))
