"""The loop over slots: the tokens of kind reference, whatever runs beside, and what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.errors import ManifestError, UsageError
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.step_inputs import StepInputs
from enginix.kinds.rtx_serving.interpreter_backend import InterpreterBackend
from enginix.kinds.rtx_serving.slot_scheduler import SlotScheduler
from enginix.kinds.rtx_serving.slot_sequences import SlotSequences
from enginix.reference import Executor
from enginix.reference.scheduler import GenerationRequest, Scheduler
from generation_events import Collector

WAIT = 120.0
TINY = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"


@pytest.fixture
def interpreter(served: Path, tiny: Path) -> InterpreterBackend:
    return InterpreterBackend(served, tiny)


@pytest.fixture
def make() -> Iterator[Callable[..., SlotScheduler]]:
    made: list[SlotScheduler] = []

    def build(backend: Any, slots: int | None = None) -> SlotScheduler:
        made.append(SlotScheduler(backend, slots))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close(WAIT)


def make_requests(count: int) -> list[GenerationRequest]:
    """Prompts from one token to several pieces; greedy and sampled, with every rule."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 60, (count,), generator=generator).tolist()
    rules: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "top_k": 10, "logprobs": True},
        {"temperature": 1.3, "top_p": 0.9},
        {"repetition_penalty": 1.3, "min_tokens": 3, "end_ids": frozenset(range(0, 400, 3))},
    ]
    return [
        GenerationRequest(
            str(number),
            tuple(torch.randint(0, 400, (length,), generator=generator).tolist()),
            4 + number % 9,
            seed=number,
            **rules[number % len(rules)],
        )
        for number, length in enumerate(lengths)
    ]


def test_32_requests_over_8_slots_have_the_tokens_of_kind_reference(
    interpreter: InterpreterBackend, tiny: Path, make: Callable[..., SlotScheduler]
) -> None:
    requests, ours, theirs = make_requests(32), Collector(WAIT), Collector(WAIT)
    scheduler = make(interpreter)
    reference = Scheduler(Executor.load(tiny), 8)
    for request in requests:
        scheduler.add(request, ours)
        reference.add(request, theirs)
    for collector in (ours, theirs):
        collector.ended(*(request.id for request in requests))
    reference.close(WAIT)
    for request in requests:
        assert ours.said(request.id) == theirs.said(request.id), request
        for a, b in zip(ours.events[request.id], theirs.events[request.id], strict=True):
            assert (a.logprob is None) == (b.logprob is None)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert {ours.said(request.id)[1] for request in requests} == {"length", "stop"}


class CountingBackend:
    """A backend that notes its steps; token n + 1 follows token n."""

    vocab_size = 400

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self.steps: list[StepInputs] = []
        self.closed = False
        self.hold: threading.Event | None = None
        self.fails = False

    def run_step(self, inputs: StepInputs) -> torch.Tensor:
        if self.hold is not None:
            assert self.hold.wait(WAIT)
        if self.fails:
            raise RuntimeError("no luck today")
        self.steps.append(inputs)
        last = inputs["input_ids"].gather(1, inputs["last_indices"].long())[:, 0]
        return torch.nn.functional.one_hot((last.long() + 1) % self.vocab_size, self.vocab_size).float()

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed = True


def test_a_long_prompt_does_not_hold_up_an_answer(make: Callable[..., SlotScheduler]) -> None:
    backend, events = CountingBackend(EngineShape(2, 4, 100)), Collector(WAIT)
    backend.hold = threading.Event()
    scheduler = make(backend)
    scheduler.add(GenerationRequest("answer", (7,), 12), events)
    scheduler.add(GenerationRequest("prompt", tuple(range(20, 60)), 2), events)
    backend.hold.set()
    events.ended("answer", "prompt")
    assert events.said("answer") == (list(range(8, 20)), "length")
    assert events.said("prompt") == ([60, 61], "length")
    # Ten pieces and an answer of 12 tokens share their steps.
    assert len(backend.steps) <= 13
    # A piece is padded on the right, and its last token is asked for.
    whole = next(step for step in backend.steps if 20 in step["input_ids"][:, 0].tolist())
    row = whole["input_ids"][:, 0].tolist().index(20)
    assert whole["input_ids"][row].tolist() == [20, 21, 22, 23] and whole["last_indices"][row].item() == 3


def test_cancelled_requests_free_their_slots(make: Callable[..., SlotScheduler]) -> None:
    backend, events = CountingBackend(EngineShape(1, 4, 4000)), Collector(WAIT)
    scheduler = make(backend)
    scheduler.add(GenerationRequest("long", (1,), 3900), events)
    scheduler.add(GenerationRequest("waiting", (1,), 3900), events)
    scheduler.add(GenerationRequest("next", (5,), 2), events)
    assert scheduler.cancel("waiting") and not scheduler.cancel("nobody")
    events.wait(lambda: len(events.events.get("long", ())) > 3)
    assert scheduler.cancel("long")
    events.ended("long", "waiting", "next")
    assert events.said("long")[1] == events.said("waiting")[1] == "cancelled"
    assert events.said("next") == ([6, 7], "length")
    # A new sequence begins at the first position of the slot.
    assert backend.steps[-2]["write_indices"].tolist() == [0]


def test_a_prompt_is_cancelled_between_its_pieces(make: Callable[..., SlotScheduler]) -> None:
    backend, events = CountingBackend(EngineShape(1, 1, 1000)), Collector(WAIT)
    scheduler = make(backend)
    scheduler.add(GenerationRequest("prompt", tuple([3] * 999), 1), events)
    while not backend.steps:
        pass
    assert scheduler.cancel("prompt")
    events.ended("prompt")
    assert events.said("prompt") == ([None], "cancelled")
    assert len(backend.steps) < 999


def test_a_step_that_fails_ends_its_requests_and_the_loop_goes_on(make: Callable[..., SlotScheduler]) -> None:
    backend, events = CountingBackend(EngineShape(2, 4, 100)), Collector(WAIT)
    backend.fails = True
    scheduler = make(backend)
    scheduler.add(GenerationRequest("broken", (1,), 5), events)
    events.ended("broken")
    assert events.events["broken"][-1].error == "RuntimeError: no luck today"
    backend.fails = False
    scheduler.add(GenerationRequest("fine", (1,), 2), events)
    events.ended("fine")
    assert events.said("fine") == ([2, 3], "length")
    scheduler.close(WAIT)
    assert backend.closed


def test_a_sequence_ends_at_the_engines_limit(make: Callable[..., SlotScheduler]) -> None:
    backend, events = CountingBackend(EngineShape(2, 4, 10)), Collector(WAIT)
    scheduler = make(backend)
    scheduler.add(GenerationRequest("a", tuple(range(9)), 50), events)
    events.ended("a")
    assert events.said("a") == ([9], "length")
    for prompt in ((), tuple(range(10)), (400,), (-1,)):
        with pytest.raises(UsageError):
            scheduler.add(GenerationRequest("b", prompt, 1), events)
    with pytest.raises(UsageError, match="the engine has 2 slots"):
        SlotScheduler(backend, 3)
    sequences = SlotSequences(backend)
    sequences.run_step({0: [1, 2, 3, 4]}, [0])
    sequences.run_step({0: [5, 6, 7, 8]})
    with pytest.raises(UsageError, match="a sequence of 12 tokens"):
        sequences.run_step({0: [9, 10, 11, 12]})


def test_the_interpreter_takes_the_engines_own_checkpoint_alone(
    served: Path, converted: Callable[..., Path]
) -> None:
    other = converted(TINY, "tiny-float16", dtype="float16")
    with pytest.raises(ManifestError, match="another checkpoint"):
        InterpreterBackend(served, other)
