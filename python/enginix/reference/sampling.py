"""Choose tokens from logits."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from enginix.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Parameters of sampling.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token, the smaller id among equals.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the smallest set of most likely tokens whose probabilities reach p; 1 for all.
        seed: of the request's own random numbers, so that the same request gives the same tokens.
        min_tokens: end tokens are forbidden before this number of tokens.
        repetition_penalty: logits of tokens seen in prompt or answer are divided (multiplied where negative)
            by this (arXiv 1909.05858); 1 for none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("temperature", 0 <= self.temperature < 1e6, "at least 0, below 1e6"),
            ("top_k", self.top_k >= 0, "at least 0; 0 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("seed", 0 <= self.seed < 2**64, "an unsigned 64-bit integer"),
            ("min_tokens", self.min_tokens >= 0, "at least 0"),
            ("repetition_penalty", 0 < self.repetition_penalty < 1e6, "more than 0, below 1e6; 1 for none"),
        ):
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)!r}", fix=f"{name}: {expected}")


def most_likely(scores: torch.Tensor) -> int:
    """Return the token with the largest score, the smallest id among equals (``argmax`` may return any)."""
    return int((scores == scores.max()).nonzero()[0])


class Sampler:
    """Chooses the tokens of one sequence.

    Args:
        sampling: the rules.
        seen: token ids of the prompt.
        end_ids: tokens that end the sequence.
    """

    def __init__(self, sampling: Sampling, seen: Collection[int], end_ids: Collection[int]) -> None:
        self.sampling = sampling
        self.ends = sorted(end_ids)
        self.seen = set(seen)
        self.count = 0
        # On the CPU for every device of the model, so that a seed gives the same tokens on all.
        self.random = torch.Generator().manual_seed(sampling.seed)
        #: bool [vocab_size]: ``seen``, on the device where the tokens are chosen.
        self.seen_mask: torch.Tensor | None = None

    def choose(self, logits: torch.Tensor) -> int:
        """Choose and remember the next token for logits [vocab_size] (CPU, float32).

        Raises:
            FloatingPointError: the logits have NaN, or no finite value.
        """
        rules = self.sampling
        if bool(logits.isnan().any()) or not bool(logits.max() < torch.inf):
            raise FloatingPointError("logits are not finite")
        scores = logits
        if rules.repetition_penalty != 1.0:
            ids = torch.tensor(sorted(self.seen))
            known = scores[ids]
            penalty = rules.repetition_penalty
            scores = scores.clone()
            scores[ids] = torch.where(known > 0, known / penalty, known * penalty)
        if self.holds_back and self.ends:
            scores = scores.clone()
            scores[self.ends] = -torch.inf
            if not bool(scores.max() > -torch.inf):
                raise FloatingPointError("every token is an end token, and min_tokens forbids them")
        return self.remember(most_likely(scores) if rules.temperature == 0 else self._draw(scores))

    @property
    def plain(self) -> bool:
        """Return whether the next token is always the most likely one."""
        rules = self.sampling
        held_back = self.holds_back and bool(self.ends)
        return rules.temperature == 0 and rules.repetition_penalty == 1.0 and not held_back

    @property
    def holds_back(self) -> bool:
        """Return whether end tokens are still forbidden."""
        return self.count < self.sampling.min_tokens

    def next_random(self) -> float:
        """Return the request's next random number, from 0 to 1; 0 where nothing is drawn."""
        if self.sampling.temperature == 0:
            return 0.0
        return float(torch.rand(1, generator=self.random, dtype=torch.float64))

    def remember(self, token: int) -> int:
        """Count a token that was chosen elsewhere, and return it."""
        self.seen.add(token)
        self.count += 1
        return token

    def _draw(self, scores: torch.Tensor) -> int:
        rules = self.sampling
        # Double precision and a stable order: the draw must not depend on summation order.
        ordered, ids = torch.sort(scores.double() / rules.temperature, descending=True, stable=True)
        if rules.top_k:
            ordered = ordered[: rules.top_k]
        odds = ordered.softmax(0)
        total = odds.cumsum(0)
        if rules.top_p < 1:
            # Keep a token if the tokens before it have not reached p yet; the first one always stays.
            keep = int((total - odds < rules.top_p).sum())
            total = total[: max(1, keep)]
        point = self.next_random() * total[-1:]
        return int(ids[min(int(torch.searchsorted(total, point, right=True)), len(total) - 1)])


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | FloatingPointError]:
    """Choose the next token of each sequence; a sequence that fails has its error instead.

    The most likely tokens are chosen on the logits' device, with one reduction and one transfer for all such
    sequences. The logits of the other sequences go to the CPU.

    Args:
        logits: float32 [sequences, vocab_size], on any device.
        samplers: one a sequence; each remembers its token.
    """
    best = logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[1], device=logits.device)
    first = torch.where(logits == best, ids, logits.shape[1]).amin(-1)
    # NaN wins every maximum, so one number shows whether a row has NaN.
    tokens, tops = torch.stack([first.double(), best[:, 0].double()]).tolist()
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.plain]
    rows = dict(zip(drawn, logits[drawn].cpu(), strict=True)) if drawn else {}
    out: list[int | FloatingPointError] = []
    for row, (sampler, token, top) in enumerate(zip(samplers, tokens, tops, strict=True)):
        try:
            if not math.isfinite(top):
                raise FloatingPointError("logits are not finite")
            out.append(sampler.choose(rows[row]) if row in rows else sampler.remember(int(token)))
        except FloatingPointError as e:
            out.append(e)
    return out


def log_probability(logits: torch.Tensor, token: int) -> float:
    """Return log of the model's probability of ``token``, before penalties, temperature and cuts."""
    return float(logits[token] - logits.logsumexp(0))
