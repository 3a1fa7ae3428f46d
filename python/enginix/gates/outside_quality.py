"""Gates whose evidence other runtimes give in another form than the reference executor."""

from __future__ import annotations

import math
from typing import Any

import torch

from enginix.errors import GateError
from enginix.gates import quality
from enginix.gates.answers import Answers, Passage
from enginix.gates.outcome import Outcome
from enginix.gates.outside_asked import Asked
from enginix.gates.outside_said import LONGER, Answer, Next, Said

BLOCK = 8  # positions of an answer that are told together


def greedy(said: Said, asked: Asked, answers: Answers, bounds: dict[str, Any]) -> Outcome:
    """The reference's own greedy answers, token by token, as far as both read the same text.

    Up to the first token that differs both read the same; what stands behind it says nothing about one step.
    So an answer counts its equal tokens, and one that is not.

    Raises:
        GateError: nothing could be compared.
    """
    ends = answers.ends
    pairs = [
        (ours, list(theirs), min(most, said.limit - len(text.tokens)))
        for run, asked_for, texts, most in (
            ("batch", asked.prompts, answers.continuations, asked.continued),
            ("replies", asked.questions, answers.replies, asked.answered),
        )
        for ours, text, theirs in zip(said.runs[run], asked_for, texts, strict=True)
    ]
    same: list[list[bool]] = []
    unasked = 0
    for ours, theirs, room in pairs:
        if ours is None:
            unasked += 1
            continue
        tokens = ours.ended(ends)
        marks = []
        for n, token in enumerate(theirs):
            if n >= len(tokens):
                # Ended by its length: nothing was asked beyond, if that is as long as it was asked. Ended by
                # itself, or cut short: where the reference goes on.
                marks += [False] if ours.finish == "stop" or n < room else []
                break
            # Which of several end tokens is the runtime's to choose.
            marks.append(tokens[n] == token or (tokens[n] in ends and token in ends))
            if not marks[-1]:
                break
        same.append(marks)
    total, equal = sum(map(len, same)), sum(map(sum, same))
    if not total or unasked:
        raise GateError(
            f"{unasked} of {len(pairs)} prompts do not fit the engine's limits"
            if unasked
            else "nothing was compared",
            fix=LONGER,
        )
    found = equal / total
    by_position = []
    for start in range(0, max(map(len, same)), BLOCK):
        here = [mark for marks in same for mark in marks[start : start + BLOCK]]
        by_position.append(
            {"from": start, "top1": quality.rounded(sum(here) / len(here)), "tokens": len(here)}
        )
    whole = sum(all(marks) for marks in same)
    summary = (
        f"{found:.1%} of {total} greedy tokens equal the reference's ({bounds['top1']:.1%} asked); "
        f"{whole} of {len(same)} answers are the same throughout"
    )
    detail = {
        **bounds,
        "positions": total,
        "top1Found": quality.rounded(found),
        "same": whole,
        "answers": len(same),
        "byPosition": by_position,
    }
    return Outcome("greedy", found >= bounds["top1"], summary, detail)


def invariance(said: Said, asked: Asked, ends: frozenset[int], tie: float, bounds: dict[str, Any]) -> Outcome:
    """The same prompt in a batch, again, and alone: the same tokens, or another one about as likely.

    Raises:
        GateError: a prompt that does not fit the engine.
    """
    faults, ties = [], 0
    runs = [said.runs[name] for name in ("batch", "again", "alone")]
    for n, (prompt, first, second, single) in enumerate(zip(asked.prompts, *runs, strict=True)):
        if first is None or second is None or single is None:
            raise GateError(f"prompt {prompt.id} does not fit the engine's limits")
        for what, other in (("repeated", second), ("alone", single)):
            if first.ended(ends) == other.ended(ends) and first.tokens:
                continue
            gap = _gap(first, other, said.next.get(n))
            if gap <= tie:
                ties += 1
            else:
                why = f"by {gap:.2g} in the logits" if math.isfinite(gap) else "and not one about as likely"
                faults.append(f"{prompt.id} {what}: another token, {why}")
    summary = (
        f"{len(faults)} differ: " + "; ".join(faults[:3])
        if faults
        else f"{len(asked.prompts)} prompts alone, in a batch, and again: equal ({ties} ties)"
    )
    return Outcome("invariance", not faults, summary, {**bounds, "tie": tie, "faults": faults, "ties": ties})


def _gap(one: Answer, other: Answer, following: Next | None) -> float:
    """How far apart two tokens are where two answers part; infinite where that is not known."""
    at = next((i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), None)
    if at is None or following is None or at >= len(following.ids):
        return math.inf
    held = dict(zip(following.ids[at].tolist(), following.logs[at].tolist(), strict=True))
    if one.tokens[at] not in held or other.tokens[at] not in held:
        return math.inf
    gap = abs(held[one.tokens[at]] - held[other.tokens[at]])
    return gap if math.isfinite(gap) else math.inf


def scored(said: Said, answers: Answers) -> tuple[list[Passage], list[torch.Tensor], Answers]:
    """The engine's distributions, their divergences from the reference's, and those on the same positions.

    Raises:
        GateError: the runtime gave none, fewer than texts, or what is not finite.
    """
    if "passages" in said.absent or not said.passages:
        raise GateError(f"no evidence: {said.absent.get('passages', 'the runtime scored no text')}")
    if len(said.passages) != len(answers.passages):
        raise GateError(f"{len(said.passages)} texts scored, {len(answers.passages)} were asked for")
    theirs, divergences = [], []
    for own, kept in zip(said.passages, answers.passages, strict=True):
        length = len(own.ids)
        if not bool(torch.isfinite(own.logs).all() and torch.isfinite(own.text_logs).all()):
            raise GateError("log-probabilities hold NaN or infinity")
        cut = Passage(kept.ids[:length], kept.logs[:length], kept.text_logs[:length])
        theirs.append(cut)
        divergences.append(divergence(own, cut))
    cut_answers = Answers(**{**vars(answers), "passages": tuple(theirs)})
    return list(said.passages), divergences, cut_answers


def divergence(own: Passage, kept: Passage) -> torch.Tensor:
    """Kullback-Leibler divergence of the reference from the engine at each position, nats, float64.

    Both are known at their most likely tokens. A token of the reference's that the engine does not list has
    at most the probability of the last one that it lists, which is taken for it; everything else counts as
    one. So it is at most what it is over the vocabulary.
    """
    match = kept.ids[:, :, None] == own.ids[:, None, :]
    listed = match.any(-1)
    at = match.long().argmax(-1)
    least = own.logs.min(-1, keepdim=True).values.double()
    q = torch.where(listed, own.logs.double().gather(1, at), least)
    p = kept.logs.double()
    rest_p = (1 - p.exp().sum(-1)).clamp(min=1e-12)
    # What a listed token has is not the rest's; what is not listed may be.
    rest_q = (1 - (q.exp() * listed).sum(-1)).clamp(min=1e-12)
    total: torch.Tensor = (p.exp() * (p - q)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return total.clamp(min=0)
