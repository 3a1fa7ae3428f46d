"""Continuous batching: order, cancellation, failures, and results that do not depend on company."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.errors import UsageError
from enginix.reference import Executor
from enginix.reference.scheduler import GenerationEvent, GenerationRequest, Scheduler
from generation_events import Collector

WAIT = 60.0


@pytest.fixture(scope="module")
def executor(golden: Path) -> Executor:
    return Executor.load(golden / "qwen3-bf16/trtllm-tp2-bfloat16")


@pytest.fixture
def make() -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def build(model: Any, slots: int = 4) -> Scheduler:
        made.append(Scheduler(model, slots))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close(WAIT)


def _prompts(count: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [tuple(torch.randint(0, 160, (n,), generator=generator).tolist()) for n in lengths]


def test_results_do_not_depend_on_company(executor: Executor, make: Callable[..., Scheduler]) -> None:
    requests = [
        GenerationRequest(
            str(i), p, 5 + i, temperature=0.0 if i % 2 else 0.9, top_k=i % 3 * 10, seed=i, logprobs=True
        )
        for i, p in enumerate(_prompts(12))
    ]
    together, alone = Collector(WAIT), Collector(WAIT)
    scheduler = make(executor)
    for request in requests:
        scheduler.add(request, together)
    together.ended(*(r.id for r in requests))
    for request in requests:
        scheduler.add(request, alone)
        alone.ended(request.id)
    assert together.events == alone.events
    for request in requests:
        events = alone.events[request.id]
        assert [e.finish for e in events] == [None] * (request.max_tokens - 1) + ["length"]
        assert all(e.logprob is not None and e.logprob <= 0 for e in events)


def test_greedy_is_the_executors(executor: Executor, make: Callable[..., Scheduler]) -> None:
    collector, scheduler = Collector(WAIT), make(executor, 1)
    scheduler.add(GenerationRequest("a", (1, 2, 3), 20), collector)
    collector.ended("a")
    assert collector.tokens("a") == executor.greedy([1, 2, 3], 20)


def test_end_tokens_stop_and_min_tokens_hold_them_back(
    executor: Executor, make: Callable[..., Scheduler]
) -> None:
    free = executor.greedy([1, 2, 3], 20)
    collector, scheduler = Collector(WAIT), make(executor)
    scheduler.add(GenerationRequest("stop", (1, 2, 3), 20, frozenset({free[3]})), collector)
    scheduler.add(GenerationRequest("late", (1, 2, 3), 20, frozenset({free[3]}), min_tokens=20), collector)
    collector.ended("stop", "late")
    first = free.index(free[3])
    assert collector.tokens("stop") == free[: first + 1]
    assert collector.events["stop"][-1].finish == "stop"
    assert free[3] not in collector.tokens("late") and len(collector.tokens("late")) == 20


def test_the_models_length_ends_an_answer(executor: Executor, make: Callable[..., Scheduler]) -> None:
    collector, scheduler = Collector(WAIT), make(executor)
    scheduler.add(GenerationRequest("a", (1,) * 60, 100), collector)
    collector.ended("a")
    assert collector.events["a"][-1].finish == "length"
    assert len(collector.tokens("a")) == executor.max_length - 60


class Gate:
    """Stands in for a model that is slow, or fails: the executor, but each step asks here first."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.open = threading.Event()
        self.open.set()
        self.on_prefill: Callable[[tuple[int, ...]], None] = lambda tokens: None
        self.on_decode: Callable[[dict[int, int]], None] = lambda tokens: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)

    def prefill(self, cache: Any, slot: int, tokens: tuple[int, ...]) -> torch.Tensor:
        self.on_prefill(tokens)
        return self.executor.prefill(cache, slot, tokens)

    def decode(self, cache: Any, tokens: dict[int, int]) -> dict[int, torch.Tensor]:
        assert self.open.wait(WAIT)
        self.on_decode(tokens)
        return self.executor.decode(cache, tokens)


class Together(Gate):
    """Stands in for a GPU: waiting prompts are computed together, up to 12 tokens."""

    prompt_tokens = 12

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor)
        self.groups: list[list[int]] = []

    def prefill_all(self, cache: Any, prompts: dict[int, tuple[int, ...]]) -> dict[int, torch.Tensor]:
        self.groups.append([len(tokens) for tokens in prompts.values()])
        for tokens in prompts.values():
            self.on_prefill(tokens)
        return self.executor.prefill_all(cache, prompts)


def test_waiting_prompts_are_computed_together(executor: Executor, make: Callable[..., Scheduler]) -> None:
    model, collector = Together(executor), Collector(WAIT)
    prompts = {"held": (5,), "a": (1, 2, 3), "b": (4, 5, 6), "c": (7, 8), "long": (3,) * 14, "d": (9, 1)}
    model.open.clear()
    scheduler = make(model, 6)
    scheduler.add(GenerationRequest("held", prompts["held"], 6), collector)
    collector.wait(lambda: "held" in collector.events)
    for name, prompt in list(prompts.items())[1:]:
        scheduler.add(GenerationRequest(name, prompt, 6), collector)
    model.open.set()
    collector.ended(*prompts)
    assert model.groups == [[3, 3, 2]], "a long prompt waits for a step of its own"
    for name, prompt in prompts.items():
        assert collector.tokens(name) == executor.greedy(prompt, 6), name


def test_a_prompt_that_fails_among_others_ends_alone(
    executor: Executor, make: Callable[..., Scheduler]
) -> None:
    model, collector = Together(executor), Collector(WAIT)

    def fail(tokens: tuple[int, ...]) -> None:
        if tokens == (4, 5, 6):
            raise RuntimeError("bad prompt")

    model.on_prefill = fail
    model.open.clear()
    scheduler = make(model, 4)
    scheduler.add(GenerationRequest("held", (5,), 6), collector)
    collector.wait(lambda: "held" in collector.events)
    for name, prompt in {"a": (1, 2, 3), "bad": (4, 5, 6), "c": (7, 8)}.items():
        scheduler.add(GenerationRequest(name, prompt, 6), collector)
    model.open.set()
    collector.ended("held", "a", "bad", "c")
    assert collector.events["bad"][-1].finish == "error"
    for name, prompt in {"held": (5,), "a": (1, 2, 3), "c": (7, 8)}.items():
        assert collector.tokens(name) == executor.greedy(prompt, 6), name


def test_cancel_while_running_and_while_waiting(executor: Executor, make: Callable[..., Scheduler]) -> None:
    model, collector = Gate(executor), Collector(WAIT)
    model.open.clear()
    scheduler = make(model, 1)
    scheduler.add(GenerationRequest("running", (1, 2), 30), collector)
    collector.wait(lambda: "running" in collector.events)
    scheduler.add(GenerationRequest("waiting", (1, 2), 30), collector)
    scheduler.add(GenerationRequest("next", (1, 2), 3), collector)
    assert scheduler.load == (1, 2)
    assert scheduler.cancel("running") and scheduler.cancel("waiting")
    model.open.set()
    collector.ended("running", "waiting", "next")
    assert [e.finish for e in collector.events["waiting"]] == ["cancelled"]
    assert collector.events["running"][-1].finish == "cancelled"
    assert len(collector.events["running"]) < 5
    assert collector.events["next"][-1].finish == "length"
    assert not scheduler.cancel("running")
    assert scheduler.load == (0, 0)


def test_a_failing_prefill_fails_its_request_only(executor: Executor, make: Callable[..., Scheduler]) -> None:
    model, collector = Gate(executor), Collector(WAIT)

    def refuse(tokens: tuple[int, ...]) -> None:
        if tokens[0] == 13:
            raise RuntimeError("unlucky")

    model.on_prefill = refuse
    scheduler = make(model)
    scheduler.add(GenerationRequest("good", (1, 2), 20), collector)
    scheduler.add(GenerationRequest("bad", (13,), 20), collector)
    collector.ended("good", "bad")
    (event,) = collector.events["bad"]
    assert event.finish == "error" and event.error == "RuntimeError: unlucky" and event.token is None
    assert collector.tokens("good") == executor.greedy([1, 2], 20)


def test_a_failing_step_fails_who_was_in_it_and_the_worker_lives(
    executor: Executor, make: Callable[..., Scheduler]
) -> None:
    model, collector = Gate(executor), Collector(WAIT)
    failures = iter([torch.OutOfMemoryError("no room")])

    def fail_once(tokens: dict[int, int]) -> None:
        for failure in failures:
            raise failure

    model.on_decode = fail_once
    scheduler = make(model)
    scheduler.add(GenerationRequest("hit", (1, 2), 20), collector)
    collector.ended("hit")
    assert collector.events["hit"][-1].finish == "error"
    assert "no room" in (collector.events["hit"][-1].error or "")
    scheduler.add(GenerationRequest("after", (1, 2), 20), collector)
    collector.ended("after")
    assert collector.tokens("after") == executor.greedy([1, 2], 20)


def test_logits_that_are_not_finite_fail_one_row(executor: Executor, make: Callable[..., Scheduler]) -> None:
    class Poisoned(Gate):
        def decode(self, cache: Any, tokens: dict[int, int]) -> dict[int, torch.Tensor]:
            out = super().decode(cache, tokens)
            return {slot: v * float("nan") if slot == 0 else v for slot, v in out.items()}

    model, collector = Poisoned(executor), Collector(WAIT)
    model.open.clear()
    scheduler = make(model, 2)
    scheduler.add(GenerationRequest("zero", (1, 2), 10), collector)
    scheduler.add(GenerationRequest("one", (3, 4), 10), collector)
    model.open.set()
    collector.ended("zero", "one")
    assert collector.events["zero"][-1].finish == "error"


def test_a_sink_that_raises_is_dropped(executor: Executor, make: Callable[..., Scheduler]) -> None:
    collector, scheduler = Collector(WAIT), make(executor)
    calls = []

    def gone(event: GenerationEvent) -> None:
        calls.append(event)
        raise BrokenPipeError

    scheduler.add(GenerationRequest("gone", (1, 2), 30), gone)
    scheduler.add(GenerationRequest("here", (1, 2), 20), collector)
    collector.ended("here")
    assert len(calls) == 1
    # The id is free again.
    scheduler.add(GenerationRequest("gone", (1, 2), 2), collector)
    collector.ended("gone")


def test_a_sink_may_add_and_cancel(executor: Executor, make: Callable[..., Scheduler]) -> None:
    collector, scheduler = Collector(WAIT), make(executor)

    def chain(event: GenerationEvent) -> None:
        if event.finish:
            scheduler.add(GenerationRequest("second", (1, 2), 2), collector)
        else:
            scheduler.cancel("first")

    scheduler.add(GenerationRequest("first", (1, 2), 30), chain)
    collector.ended("second")


def test_close_ends_everything_and_refuses_more(executor: Executor, make: Callable[..., Scheduler]) -> None:
    model, collector = Gate(executor), Collector(WAIT)
    model.open.clear()
    scheduler = make(model, 1)
    for name in ("a", "b"):
        scheduler.add(GenerationRequest(name, (1, 2), 50), collector)
    collector.wait(lambda: "a" in collector.events)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    model.open.set()
    closer.join(WAIT)
    assert not closer.is_alive()
    collector.ended("a", "b")
    assert collector.events["b"][-1].finish == "cancelled"
    with pytest.raises(UsageError, match="closed"):
        scheduler.add(GenerationRequest("c", (1,), 1), collector)


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest("x", (), 5),
        GenerationRequest("x", (160,), 5),
        GenerationRequest("x", (1,) * 64, 5),
        GenerationRequest("x", (1,) * 65, 5),
        GenerationRequest("x", (1,), 0),
        GenerationRequest("x", (1,), 5, top_p=0.0),
        GenerationRequest("x", (1,), 5, temperature=-1.0),
    ],
)
def test_impossible_requests_are_refused_at_once(
    executor: Executor, make: Callable[..., Scheduler], request_: GenerationRequest
) -> None:
    scheduler = make(executor)
    with pytest.raises(UsageError):
        scheduler.add(request_, Collector(WAIT))
    assert scheduler.load == (0, 0)


def test_an_id_under_way_is_refused(executor: Executor, make: Callable[..., Scheduler]) -> None:
    model, collector = Gate(executor), Collector(WAIT)
    model.open.clear()
    scheduler = make(model)
    scheduler.add(GenerationRequest("a", (1, 2), 5), collector)
    with pytest.raises(UsageError, match="under way"):
        scheduler.add(GenerationRequest("a", (1, 2), 5), collector)
    model.open.set()
    collector.ended("a")


def test_many_threads(executor: Executor, make: Callable[..., Scheduler]) -> None:
    scheduler, collector = make(executor, 3), Collector(WAIT)
    expected = executor.greedy([1, 2, 3], 6)

    def client(name: str) -> None:
        for turn in range(5):
            scheduler.add(GenerationRequest(f"{name}-{turn}", (1, 2, 3), 6), collector)
            if turn % 2:
                scheduler.cancel(f"{name}-{turn}")

    threads = [threading.Thread(target=client, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    ids = [f"{i}-{turn}" for i in range(6) for turn in range(5)]
    collector.ended(*ids)
    for request_id in ids:
        events = collector.events[request_id]
        assert sum(e.finish is not None for e in events) == 1
        tokens = [e.token for e in events if e.token is not None]
        assert tokens == expected[: len(tokens)]
