"""Choose the next tokens of many sequences on their device, by rules and random numbers of ``sampling``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from enginix.reference.cache import move_to_device
from enginix.reference.sampling import Sampler

Choice = tuple[int | FloatingPointError, float | None]


def _fetch(numbers: torch.Tensor) -> Callable[[], list[Choice]]:
    """Start to copy numbers [3 or 4, rows]; return a function that waits and reads each row's choice."""
    if numbers.device.type != "cuda":
        return lambda: [_read_choice(*row) for row in numbers.T.tolist()]
    on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    on_host.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> list[Choice]:
        copied.synchronize()
        return [_read_choice(*row) for row in on_host.T.tolist()]

    return read


def _read_choice(token: float, largest: float, best: float, logprob: float | None = None) -> Choice:
    if not -torch.inf < largest < torch.inf:  # NaN wins every maximum
        return FloatingPointError("logits are not finite"), None
    if best == -torch.inf:
        return FloatingPointError("every token is an end token, and min_tokens forbids them"), None
    return int(token), logprob


@torch.inference_mode()
def choose_tokens_on_device(
    logits: torch.Tensor, samplers: Mapping[int, Sampler], *, logprobs: bool = False
) -> tuple[torch.Tensor, Callable[[], list[Choice]]]:
    """Submit the choice of the next token of each sequence; each sampler counts its token as chosen.

    Args:
        logits: float32 [rows, vocab_size].
        samplers: by row; other rows are ignored.
        logprobs: also compute the log-probabilities of the tokens.

    Returns:
        Tokens int64 [rows] on the device, and a function that waits for them: each row's token, or its
        sequence's error, and log-probability.
    """
    largest, ids = logits.max(-1)  # the smallest id among equals
    best = largest
    ruled = [row for row, sampler in samplers.items() if not sampler.plain]
    if ruled:
        rows = move_to_device(ruled, logits.device)
        scores, tokens = _choose_by_rules(logits[rows], [samplers[row] for row in ruled])
        best, ids = best.index_copy(0, rows, scores), ids.index_copy(0, rows, tokens)
    numbers = [ids.double(), largest, best]  # stacked in double precision
    if logprobs:
        numbers.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1))
    for row, sampler in samplers.items():
        sampler.count += 1
        if sampler.seen_mask is not None:
            sampler.seen_mask[ids[row : row + 1]] = True
    return ids, _fetch(torch.stack(numbers))


def _choose_by_rules(scores: torch.Tensor, samplers: Sequence[Sampler]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's largest score after the rules that change scores, and its token."""
    for row, sampler in enumerate(samplers):
        penalty = sampler.sampling.repetition_penalty
        if penalty != 1.0:
            if sampler.seen_mask is None:
                sampler.seen_mask = scores.new_zeros(scores.shape[1], dtype=torch.bool)
                sampler.seen_mask[move_to_device(sorted(sampler.seen), scores.device)] = True
            known = scores[row]
            penalized = torch.where(known > 0, known / penalty, known * penalty)
            scores[row] = torch.where(sampler.seen_mask, penalized, known)
        if sampler.holds_back and sampler.ends:
            scores[row, move_to_device(sampler.ends, scores.device)] = -torch.inf
    best, tokens = scores.max(-1)
    if any(sampler.sampling.temperature for sampler in samplers):
        tokens = _draw(scores, samplers)
    return best, tokens


def _draw(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Return a token for each row of scores, by temperature, top_k and top_p; see :meth:`Sampler._draw`."""
    size = scores.shape[1]
    numbers = [
        (r.temperature or 1.0, (r.top_k or size) if r.temperature else 1, r.top_p, s.next_random())
        for s in samplers
        for r in [s.sampling]
    ]
    rules = move_to_device(numbers, scores.device, torch.float64)
    temperature, top_k, top_p, point = rules[:, :, None].unbind(1)
    # Equal numbers stay equal in double precision, so the order is that of the scores.
    ordered, ids = torch.sort(scores, descending=True, stable=True)
    place = torch.arange(size, device=scores.device)
    odds = (ordered.double() / temperature).masked_fill(place >= top_k, -torch.inf).softmax(-1)
    total = odds.cumsum(-1)
    within = (place < top_k) & ((total - odds < top_p) | (top_p == 1))
    last = within.sum(-1, keepdim=True).clamp(min=1) - 1
    chosen = torch.searchsorted(total, point * total.gather(1, last), right=True).minimum(last)
    return ids.gather(1, chosen)[:, 0]
