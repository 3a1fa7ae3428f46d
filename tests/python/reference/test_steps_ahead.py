"""What GPUs do, on the CPU: steps of fixed shapes, tokens chosen on the device, a step ahead of the host."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.reference import Executor
from enginix.reference.batched_sampling import choose_tokens_on_device
from enginix.reference.graphs import HELD, PATIENCE, DecodeSteps, pad_rows, pad_width
from enginix.reference.sampling import Sampler, Sampling, choose_tokens, log_probability
from enginix.reference.scheduler import GenerationRequest, Scheduler
from generation_events import Collector

CASES = ["llama-rope-llama3", "qwen3-bf16", "qwen2moe-bf16", "mixtral-bf16", "phi3-bf16", "qwen2-rope-yarn"]
PIECE = 12


def _ahead(executor: Executor) -> Executor:
    """An executor that schedules as on a GPU."""
    executor.steps_ahead, executor.prompt_tokens = 1, PIECE
    executor.piece_tokens = 0 if executor.rope.depends_on_length else PIECE
    return executor


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, golden: Path) -> tuple[Executor, Executor]:
    checkpoint = golden / request.param / "trtllm-tp1-bfloat16"
    return Executor.load(checkpoint), _ahead(Executor.load(checkpoint))


@pytest.fixture(scope="module")
def executors(golden: Path) -> tuple[Executor, Executor]:
    checkpoint = golden / "qwen3-bf16/trtllm-tp2-bfloat16"
    return Executor.load(checkpoint), _ahead(Executor.load(checkpoint))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 2e-6 * expected.norm())


def test_steps_of_fixed_shapes_compute_what_dynamic_ones_do(
    pair: tuple[Executor, Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginix.reference.cache.BLOCK", 4)
    monkeypatch.setattr(
        "enginix.reference.graphs.pad_width", lambda length, capacity: min(capacity, length + 3)
    )
    dynamic, static = pair
    caches = dynamic.new_cache(11), static.new_cache(11)
    # Rows 1 and 8 are idle; row 8 keeps a sequence longer than the others, which goes on later.
    for slot, length in ((0, 3), (3, 11), (4, 7), (8, 30)):
        for executor, cache in zip(pair, caches, strict=True):
            executor.prefill(cache, slot, list(range(1, length + 1)))
    for step in range(12):
        active = (0, 3, 4) if step < 8 else (3, 8)
        tokens = {slot: 5 + step + slot for slot in active}
        expected, found = (e.decode(c, tokens) for e, c in zip(pair, caches, strict=True))
        assert list(found) == list(expected)
        assert all(_close(found[slot], expected[slot]) for slot in active), step
    assert caches[0].lengths == caches[1].lengths


def test_a_step_has_as_many_rows_as_its_last_slot_needs(executors: tuple[Executor, Executor]) -> None:
    cache = executors[1].new_cache(20)
    rows = []
    for slot in (0, 2, 5, 8, 19):
        executors[1].prefill(cache, slot, [1, 2])
        rows.append(len(executors[1].decode_stored(cache, [0, slot])))
    assert rows == [1, 4, 8, 16, 20]


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_padding_is_bounded(count: int, more: int) -> None:
    rows, width = pad_rows(count, count + more), pad_width(count, count + more)
    assert count <= rows <= min(count + more, max(2 * count, 8), count + 7 if count > 8 else 8)
    assert count <= width <= min(count + more, count + max(127, count // 4))
    assert pad_width(width, 10**6) == width or width == count + more


def test_prompts_longer_than_a_piece_say_the_same(pair: tuple[Executor, Executor]) -> None:
    whole, pieces = pair
    ids = [(7 * i + 3) % whole.config.vocab_size for i in range(3 * PIECE + 5)]
    assert _close(pieces.prefill(pieces.new_cache(1), 0, ids), whole.prefill(whole.new_cache(1), 0, ids))


def test_texts_scored_together_say_the_same(pair: tuple[Executor, Executor]) -> None:
    alone, together = pair
    texts = [[(5 * i + n) % 97 + 1 for i in range(n)] for n in (4, 4, 3, 9, 20, 1, 2, 2)]
    for found, expected in zip(together.forward(texts), alone.forward(texts), strict=True):
        assert found.shape == expected.shape and _close(found, expected)


@pytest.fixture
def make() -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def build(model: Any, slots: int) -> Scheduler:
        made.append(Scheduler(model, slots))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close(60)


def _requests(executor: Executor) -> list[GenerationRequest]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 40, (14,), generator=generator).tolist()
    prompts = [tuple(torch.randint(0, 160, (n,), generator=generator).tolist()) for n in lengths]
    end = executor.greedy(prompts[0], 4)[2]
    rules: list[dict[str, Any]] = [
        {}, {"end_ids": frozenset({end})}, {"end_ids": frozenset({end, 3}), "min_tokens": 9},
        {"temperature": 0.9, "top_k": 10, "logprobs": True}, {"temperature": 0.7, "top_p": 0.8},
        {"repetition_penalty": 1.4}, {"temperature": 1.3, "repetition_penalty": 0.7, "logprobs": True},
    ]  # fmt: skip
    return [
        GenerationRequest(str(i), prompt, 3 + i, **{"seed": i, **rules[i % 7]})
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_a_scheduler_with_a_step_ahead_answers_the_same(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler], slots: int
) -> None:
    found = []
    for executor in executors:
        collector, scheduler = Collector(60), make(executor, slots)
        requests = _requests(executors[0])
        for request in requests:
            scheduler.add(request, collector)
        collector.ended(*(r.id for r in requests))
        assert scheduler.load == (0, 0)
        found.append(collector.events)
    for name, expected in found[0].items():
        events = found[1][name]
        assert [(e.token, e.finish, e.error) for e in events] == [
            (e.token, e.finish, e.error) for e in expected
        ]
        for event, other in zip(events, expected, strict=True):
            assert (event.logprob is None) == (other.logprob is None)
            assert event.logprob is None or abs(event.logprob - (other.logprob or 0)) < 1e-4


def test_the_models_length_ends_an_answer(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler]
) -> None:
    collector, scheduler = Collector(60), make(executors[1], 2)
    scheduler.add(GenerationRequest("a", (1,) * 60, 100), collector)
    collector.ended("a")
    assert collector.events["a"][-1].finish == "length"
    assert collector.tokens("a") == executors[0].greedy((1,) * 60, 100)


class Recorded:
    """Stands in for an executor that writes down its steps and may fail in them."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.steps: list[str] = []
        self.on_step: Callable[[str], None] = lambda step: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)

    def _note(self, step: str) -> None:
        self.steps.append(step)
        self.on_step(step)

    def prefill(
        self, cache: Any, slot: int, tokens: tuple[int, ...], *, extend: bool = False
    ) -> torch.Tensor:
        self._note(f"prefill {len(tokens)}{' more' if extend else ''}")
        return self.executor.prefill(cache, slot, tokens, extend=extend)

    def decode_stored(self, cache: Any, active: list[int]) -> torch.Tensor:
        self._note(f"decode {len(active)}")
        return self.executor.decode_stored(cache, active)


def test_answers_go_on_between_the_pieces_of_a_long_prompt(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler]
) -> None:
    model, collector = Recorded(executors[1]), Collector(60)
    scheduler, long = make(model, 4), tuple(range(1, 2 * PIECE + 6))

    def add_long(step: str) -> None:
        if len(model.steps) == 2:
            scheduler.add(GenerationRequest("long", long, 4), collector)

    model.on_step = add_long
    scheduler.add(GenerationRequest("running", (1, 2), 20), collector)
    collector.ended("running", "long")
    first = model.steps.index(f"prefill {PIECE}")
    decode = "decode 1"
    assert model.steps[first : first + 5] == [
        f"prefill {PIECE}", decode, f"prefill {PIECE} more", decode, "prefill 5 more",
    ]  # fmt: skip
    assert "decode 2" in model.steps
    assert collector.tokens("long") == executors[0].greedy(long, 4)
    assert collector.tokens("running") == executors[0].greedy((1, 2), 20)


def test_a_long_prompt_is_cancelled_between_its_pieces(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler]
) -> None:
    model, collector = Recorded(executors[1]), Collector(60)
    scheduler = make(model, 2)
    model.on_step = lambda step: scheduler.cancel("long") and None
    scheduler.add(GenerationRequest("long", (5,) * 3 * PIECE, 4), collector)
    collector.ended("long")
    assert [e.finish for e in collector.events["long"]] == ["cancelled"]
    assert model.steps == [f"prefill {PIECE}"] and scheduler.load == (0, 0)


@pytest.mark.parametrize("fails", ["prefill 12 more", "decode 1"])
def test_a_failing_step_fails_who_was_in_it(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler], fails: str
) -> None:
    model, collector = Recorded(executors[1]), Collector(60)
    failures = iter([torch.OutOfMemoryError("no room")])

    def fail_once(step: str) -> None:
        if step == fails:
            for failure in failures:
                raise failure

    model.on_step = fail_once
    scheduler = make(model, 2)
    scheduler.add(GenerationRequest("hit", (5,) * 30, 4), collector)
    collector.ended("hit")
    assert "no room" in (collector.events["hit"][-1].error or "")
    scheduler.add(GenerationRequest("after", (1, 2), 6), collector)
    collector.ended("after")
    assert collector.tokens("after") == executors[0].greedy((1, 2), 6)


def test_a_token_computed_beyond_the_end_is_dropped(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler]
) -> None:
    """The slot is another request's when the dropped token is read."""
    free = executors[0].greedy((1, 2, 3), 8)
    collector, scheduler = Collector(60), make(executors[1], 1)
    scheduler.add(GenerationRequest("ends", (1, 2, 3), 30, frozenset({free[3]})), collector)
    scheduler.add(GenerationRequest("next", (4, 5, 6), 8), collector)
    collector.ended("ends", "next")
    assert collector.tokens("ends") == free[: free.index(free[3]) + 1]
    assert collector.events["ends"][-1].finish == "stop"
    assert collector.tokens("next") == executors[0].greedy((4, 5, 6), 8)


def test_logits_that_are_not_finite_fail_one_row(
    executors: tuple[Executor, Executor], make: Callable[..., Scheduler]
) -> None:
    class Poisoned(Recorded):
        def decode_stored(self, cache: Any, active: list[int]) -> torch.Tensor:
            logits = super().decode_stored(cache, active).clone()
            if len(self.steps) > 3 and 0 in active:
                logits[0] = float("nan")
            return logits

    collector, scheduler = Collector(60), make(Poisoned(executors[1]), 2)
    scheduler.add(GenerationRequest("zero", (1, 2), 20), collector)
    scheduler.add(GenerationRequest("one", (3, 4), 20), collector)
    collector.ended("zero", "one")
    assert collector.events["zero"][-1].error == "FloatingPointError: logits are not finite"
    assert collector.tokens("one") == executors[0].greedy((3, 4), 20)


RULES = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.integers(0, 3),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
)
# Few values, so that many logits are equal.
ROWS = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=10, max_size=10)


@settings(deadline=None)
@given(
    st.lists(st.tuples(ROWS, RULES), min_size=1, max_size=5), st.sampled_from([[], [0, 4], list(range(10))])
)
def test_tokens_chosen_on_the_device_are_those_of_the_host(
    rows: list[tuple[list[float], Sampling]], ends: list[int]
) -> None:
    logits = torch.tensor([row for row, _ in rows])
    host, device = ([Sampler(rules, (1, 5), ends) for _, rules in rows] for _ in range(2))
    for _ in range(5):
        expected = choose_tokens(logits, host)
        ids, read = choose_tokens_on_device(logits, dict(enumerate(device)), logprobs=True)
        for row, ((token, logprob), other) in enumerate(zip(read(), expected, strict=True)):
            if isinstance(other, int):
                assert token == other == int(ids[row])
                assert logprob is not None and abs(logprob - log_probability(logits[row], other)) < 1e-5
            else:
                assert isinstance(token, FloatingPointError) and token.args == other.args
        if not all(isinstance(token, int) for token in expected):
            return  # a sequence that failed is not asked again


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_device_says_which_row_is_not_finite(bad: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, bad], [-torch.inf, 0.0]])
    samplers = {row: Sampler(Sampling(temperature=float(row)), (), ()) for row in range(3)}
    (first, _), (second, _), (third, _) = choose_tokens_on_device(logits, samplers)[1]()
    assert (first, third) == (1, 1) and isinstance(second, FloatingPointError)


def test_a_cache_is_freed_with_its_scheduler(executors: tuple[Executor, Executor]) -> None:
    """Without a collection of garbage: the next cache may need the memory."""
    collector, scheduler = Collector(60), Scheduler(executors[1], 2)
    scheduler.add(GenerationRequest("a", (1, 2), 5), collector)
    collector.ended("a")
    cache = weakref.ref(scheduler._cache)
    gc.disable()
    try:
        scheduler.close(60)
        del scheduler
        assert cache() is None
    finally:
        gc.enable()


def test_where_capture_is_impossible_steps_are_computed_one_by_one(
    executors: tuple[Executor, Executor],
) -> None:
    """There is no GPU here: the capture fails."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    dynamic, static = executors
    caches = dynamic.new_cache(2), static.new_cache(2)
    steps = static._steps[caches[1]] = DecodeSteps(static._fill_logits, caches[1], capture=True)
    for executor, cache in zip(executors, caches, strict=True):
        executor.prefill(cache, 0, [1, 2, 3])
    with pytest.warns(RuntimeWarning, match="decode steps are not captured"):
        found = static.decode(caches[1], {0: 4})
    assert _close(found[0], dynamic.decode(caches[0], {0: 4})[0])
    assert not steps.capture


def test_a_size_is_captured_once_or_served_by_a_larger_one(
    executors: tuple[Executor, Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, captured = executors[1].new_cache(64), list[tuple[int, int]]()
    cache.reserve(40)
    steps = DecodeSteps(executors[1]._fill_logits, cache, capture=True)

    def capture(cache: Any, rows: int, width: int) -> Any:
        captured.append((rows, width))
        return (rows, width)

    monkeypatch.setattr(steps, "_capture", capture)
    assert steps._find_graph(cache, 8, 256) == (8, 256)
    # A smaller size is not worth a capture before it was wanted often.
    assert [steps._find_graph(cache, 4, 128) for _ in range(PATIENCE + 2)] == [(8, 256)] * PATIENCE + [
        (4, 128)
    ] * 2
    assert steps._find_graph(cache, 8, 384) == (8, 384)
    assert steps._find_graph(cache, 8, 256) == (8, 256)
    assert captured == [(8, 256), (4, 128), (8, 384)]
    for rows in range(1, HELD + 1):
        steps._find_graph(cache, rows + 64, 512)
    assert len(steps._graphs) == HELD and (8, 256) not in steps._graphs
    cache.reserve(cache.capacity + 1)
    assert steps._find_graph(cache, 1, 128) == (1, 128), "the cache has other tensors now"
