"""The sampler's rules, each against its definition or against transformers'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import UsageError
from enginix.reference.sampling import Sampler, Sampling, choose_tokens, log_probability

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(lambda v: torch.tensor(v))


def _draws(logits: torch.Tensor, count: int = 400, **rules: float) -> list[int]:
    sampler = Sampler(Sampling(**rules), (), ())  # type: ignore[arg-type]
    return [sampler.choose(logits) for _ in range(count)]


@given(LOGITS)
def test_greedy_is_the_first_of_the_largest(logits: torch.Tensor) -> None:
    assert Sampler(Sampling(), (), ()).choose(logits) == logits.tolist().index(max(logits.tolist()))


@settings(deadline=None, max_examples=50)
@given(LOGITS, st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_top_k_keeps_k(logits: torch.Tensor, k: int, seed: int) -> None:
    allowed = set(torch.sort(logits, descending=True, stable=True).indices[:k].tolist())
    assert set(_draws(logits, 30, temperature=1.0, top_k=k, seed=seed)) <= allowed


@settings(deadline=None, max_examples=50)
@given(LOGITS, st.floats(0.05, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: torch.Tensor, p: float) -> None:
    # Sorted before the softmax, which cannot tell logits apart that differ in the last digits.
    ordered, ids = logits.double().sort(descending=True, stable=True)
    odds = ordered.softmax(0)
    reached = (odds.cumsum(0) < p - 1e-9).sum().item()
    allowed = set(ids[: reached + 2].tolist())
    assert set(_draws(logits, 30, temperature=1.0, top_p=p)) <= allowed


def test_frequencies_follow_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(0)
        count = 4000
        found = (
            torch.bincount(torch.tensor(_draws(logits, count, temperature=temperature)), minlength=4) / count
        )
        # Five standard deviations of a binomial share; the seed is fixed.
        assert bool(((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all())


def test_a_seed_repeats_and_another_differs() -> None:
    logits = torch.zeros(50)
    assert _draws(logits, seed=7, temperature=1.0) == _draws(logits, seed=7, temperature=1.0)
    assert _draws(logits, seed=7, temperature=1.0) != _draws(logits, seed=8, temperature=1.0)


@given(LOGITS, st.floats(0.5, 3), st.data())
def test_repetition_penalty_is_transformers(
    logits: torch.Tensor, penalty: float, data: st.DataObject
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=5))
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([seen]), logits[None].clone())[0]
    chosen = Sampler(Sampling(repetition_penalty=penalty), seen, ()).choose(logits)
    assert expected[chosen] == expected.max()


def test_min_tokens_forbids_end_tokens_until_then() -> None:
    sampler = Sampler(Sampling(min_tokens=2), (), {0})
    logits = torch.tensor([5.0, 1.0])
    assert [sampler.choose(logits) for _ in range(3)] == [1, 1, 0]


def test_what_is_not_finite_is_refused() -> None:
    for bad in ([1.0, float("nan")], [float("inf"), 0.0]):
        with pytest.raises(FloatingPointError):
            Sampler(Sampling(), (), ()).choose(torch.tensor(bad))
    with pytest.raises(FloatingPointError):
        Sampler(Sampling(min_tokens=1), (), {0, 1}).choose(torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"min_tokens": -1},
        {"repetition_penalty": 0.0},
    ],
)
def test_rules_out_of_range_are_named(rules: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(rules))):
        Sampling(**rules)  # type: ignore[arg-type]


@given(LOGITS)
def test_log_probability_is_log_softmax(logits: torch.Tensor) -> None:
    expected = logits.log_softmax(0)
    assert all(abs(log_probability(logits, i) - float(expected[i])) < 1e-4 for i in range(len(logits)))


def test_choosing_together_is_choosing_alone() -> None:
    """Plain greedy rows are settled in one go, the others one by one; a bad row spoils itself alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 50, generator=generator).round(decimals=1)  # with ties
    logits[3, 7] = float("nan")
    rules = [
        Sampling(),
        Sampling(temperature=0.8, top_k=5, seed=3),
        Sampling(repetition_penalty=1.5),
        Sampling(),
        Sampling(min_tokens=2),
        Sampling(temperature=1.2, top_p=0.7, seed=9),
        Sampling(),
    ]
    together, alone = ([Sampler(r, {1, 2}, {5, 6}) for r in rules] for _ in range(2))
    for _ in range(4):
        found = choose_tokens(logits, together)
        assert isinstance(found[3], FloatingPointError)
        for row, sampler in enumerate(alone):
            if row != 3:
                assert found[row] == sampler.choose(logits[row])
    assert [s.seen for s in together] == [s.seen for s in alone]
