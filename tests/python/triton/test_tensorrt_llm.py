"""tensorrt_llm of kind reference, against stand-ins for Triton's Python backend and for the scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from enginix.triton.models.tensorrt_llm import TensorrtLlm

from .conftest import StandInOrder, StandInScheduler, arguments, closes, until

RequestOf = Callable[..., Any]


@dataclass
class Server:
    model: TensorrtLlm
    scheduler: StandInScheduler

    def run(self, request: Any) -> Any:
        assert self.model.execute([request]) is None
        return request.sender


@pytest.fixture
def server(backend: Any, meeting_place: Any) -> Iterator[Server]:
    scheduler = StandInScheduler()
    model = TensorrtLlm(
        arguments(
            max_batch_size=2,
            gpt_model_path="/checkpoint",
            end_ids="0,5",
            max_seq_len="32",
            max_tokens_limit="20",
            cancellation_check_period_ms="10",
            max_queue_size="1",
        ),
        backend,
        lambda path, device, batch: (scheduler, StandInOrder),
    )
    yield Server(model, scheduler)
    closes(model)


def ask(request_of: RequestOf, **more: Any) -> Any:
    inputs = {"input_ids": np.array([[11, 12, 13]], np.int32), "input_lengths": 3, "request_output_len": 5}
    return request_of(**{**inputs, **more})


def test_without_streaming_there_is_exactly_one_response(server: Server, request_of: RequestOf) -> None:
    sender = server.run(
        ask(request_of, return_log_probs=True, return_num_input_tokens=True, return_num_output_tokens=True)
    )
    server.scheduler.say(21, 22, 0, finish="stop")
    until(lambda: bool(sender.responses))
    (response,) = sender.responses
    assert sender.flags == [1]
    assert response.tensors["output_ids"].tolist() == [[[21, 22]]]  # the end token is not shown
    assert response.tensors["sequence_length"].tolist() == [[2]]
    assert response.tensors["finish_reason"].tolist() == [[b"stop"]]
    assert response.tensors["cum_log_probs"].tolist() == [[-1.0]]
    assert response.tensors["output_log_probs"].tolist() == [[[-0.5, -0.5]]]
    assert response.tensors["num_input_tokens"].tolist() == [[3]]
    assert response.tensors["num_output_tokens"].tolist() == [[2]]


def test_streaming_sends_every_token(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    server.scheduler.say(21, 22, 23, finish="length")
    until(lambda: len(sender.responses) == 3)
    assert [r.tensors["output_ids"].reshape(-1).tolist() for r in sender.responses] == [[21], [22], [23]]
    assert sender.flags == [0, 0, 1]
    assert [r.tensors["finish_reason"][0, 0] for r in sender.responses] == [b"", b"", b"length"]
    assert [r.tensors["completion_tokens"].item() for r in sender.responses] == [1, 2, 3]


def test_an_end_token_alone_still_ends_the_stream(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    server.scheduler.say(5, finish="stop")
    until(lambda: bool(sender.responses))
    assert sender.responses[0].tensors["output_ids"].shape == (1, 1, 0)
    assert sender.flags == [1]


def test_the_prompt_comes_first_where_it_is_wanted(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, exclude_input_in_output=False))
    server.scheduler.say(21, finish="length")
    until(lambda: bool(sender.responses))
    assert sender.responses[0].tensors["output_ids"].reshape(-1).tolist() == [11, 12, 13, 21]


def test_a_sender_that_has_fallen_behind_sends_tokens_together(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    held = threading.Event()
    send, sender.send = sender.send, lambda *a, **k: (held.wait(20), send(*a, **k))  # type: ignore[method-assign]
    server.scheduler.say(21, *range(30, 60), finish="length")
    held.set()
    until(lambda: bool(sender.flags) and sender.flags[-1] == 1)
    shown = [r.tensors["output_ids"].reshape(-1).tolist() for r in sender.responses]
    assert [token for ids in shown for token in ids] == [21, *range(30, 60)]
    assert len(shown) < 20
    assert sender.responses[-1].tensors["completion_tokens"].item() == 31


def test_a_sender_that_takes_more_than_its_share_sends_tokens_together(
    server: Server, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processor's time as the sender sees it; what it really takes depends on what else runs.
    taken = [0.0]
    clock = SimpleNamespace(monotonic=time.monotonic, thread_time=lambda: taken[0])
    monkeypatch.setattr("enginix.triton.models.answers.time", clock)
    # Few streams would get each token as it comes.
    server.model._generations._capacity = 0
    for _ in range(4):
        server.run(ask(request_of, streaming=True))
    sender = server.run(ask(request_of, streaming=True))
    send = sender.send

    def expensive(*a: Any, **k: Any) -> None:
        taken[0] += 0.05
        send(*a, **k)

    sender.send = expensive  # type: ignore[method-assign]
    for token in range(21, 61):
        server.scheduler.say(token)
        time.sleep(0.004)
    server.scheduler.say(61, finish="length")
    until(lambda: bool(sender.flags) and sender.flags[-1] == 1)
    shown = [r.tensors["output_ids"].reshape(-1).tolist() for r in sender.responses]
    assert [token for ids in shown for token in ids] == list(range(21, 62))
    # 41 responses would take half of a processor.
    assert len(shown) < 30
    assert [r.tensors["sequence_length"].item() for r in sender.responses] == [len(ids) for ids in shown]
    assert {r.tensors["prompt_tokens"].item() for r in sender.responses} == {3}


def test_a_stop_word_ends_and_is_not_shown(server: Server, request_of: RequestOf) -> None:
    words = np.array([[[8, 9], [2, -1]]], np.int32)
    sender = server.run(ask(request_of, streaming=True, stop_words_list=words))
    server.scheduler.say(21, 8, 7, 8, 9)
    until(lambda: bool(sender.flags) and sender.flags[-1] == 1)
    shown = [r.tensors["output_ids"].reshape(-1).tolist() for r in sender.responses]
    assert shown == [[21], [8, 7], []]
    assert sender.responses[-1].tensors["finish_reason"][0, 0] == b"stop"
    until(lambda: server.scheduler.cancelled == [server.scheduler.orders[0].id])
    server.scheduler.say(finish="cancelled")
    time.sleep(0.05)
    assert len(sender.responses) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.0, 0, 1.0)),
        ({"temperature": 0.0, "runtime_top_k": 50}, (0.0, 0, 1.0)),
        ({"runtime_top_k": 1, "temperature": 2.0}, (0.0, 0, 1.0)),
        ({"temperature": 0.5}, (0.5, 0, 1.0)),
        ({"runtime_top_k": 40}, (1.0, 40, 1.0)),
        ({"runtime_top_p": 0.9}, (1.0, 0, 0.9)),
        ({"runtime_top_p": 0.0}, (0.0, 0, 1.0)),
        # TensorRT-LLM: greedy without top_k, no limit beside one.
        ({"temperature": 0.9, "runtime_top_p": 0.0}, (0.0, 0, 1.0)),
        ({"temperature": 0.9, "runtime_top_k": 0, "runtime_top_p": 0.0}, (0.0, 0, 1.0)),
        ({"temperature": 0.5, "runtime_top_k": 7, "runtime_top_p": 0.0}, (0.5, 7, 1.0)),
        ({"temperature": 0.5, "runtime_top_k": 0}, (0.5, 0, 1.0)),
    ],
)
def test_sampling(
    server: Server, request_of: RequestOf, given: Any, expected: tuple[float, int, float]
) -> None:
    server.run(ask(request_of, **{k: np.array([[v]]) for k, v in given.items()}))
    order = server.scheduler.orders[0]
    assert (order.temperature, order.top_k, order.top_p) == expected


@pytest.mark.parametrize(
    ("end_id", "expected"), [(None, {0, 5}), (0, {0, 5}), (5, {0, 5}), (9, {9}), (-1, set())]
)
def test_end_ids(server: Server, request_of: RequestOf, end_id: int | None, expected: set[int]) -> None:
    server.run(ask(request_of, **({} if end_id is None else {"end_id": end_id})))
    assert server.scheduler.orders[0].end_ids == expected


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"beam_width": 4}, "beam_width: 4 is not supported by enginix's executor, only 1"),
        ({"return_context_logits": True}, "return_context_logits: True is not supported"),
        ({"temperature": -1.0}, "temperature: -1.0 is below 0"),
        ({"temperature": float("nan")}, "temperature: nan is not a number"),
        ({"runtime_top_p": 1.5}, "top_p: 1.5 is not between 0 and 1"),
        ({"runtime_top_k": -2}, "runtime_top_k: -2 is not at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 is not above 0"),
        ({"input_lengths": 4}, "input_lengths: 4 is not between 1 and the 3"),
        ({"input_ids": np.zeros((2, 3), np.int32)}, "input_ids: 2 rows"),
        ({"request_output_len": 21}, "above this server's limit of 20"),
        ({"stop_words_list": np.array([[[8, 9], [3, -1]]])}, "stop_words_list: end 3"),
        ({"stop_words_list": np.array([[8, 9, 2]])}, "stop_words_list: shape (3,) is not (2, n)"),
        ({"seed": np.array([[1, 2]])}, "seed: 2 values where one is expected"),
    ],
)
def test_bad_requests_are_refused_by_name(
    server: Server, request_of: RequestOf, backend: Any, inputs: Any, expected: str
) -> None:
    sender = server.run(ask(request_of, **inputs))
    (response,) = sender.responses
    assert expected in str(response.error)
    assert response.error.code == backend.TritonError.INVALID_ARG
    assert sender.flags == [1]
    assert not server.scheduler.orders


def test_the_queue_has_an_end(server: Server, request_of: RequestOf, backend: Any) -> None:
    senders = [server.run(ask(request_of)) for _ in range(4)]
    until(lambda: bool(senders[3].responses))
    assert [bool(s.responses) for s in senders] == [False, False, False, True]
    assert senders[3].responses[0].error.code == backend.TritonError.UNAVAILABLE
    server.scheduler.say(1, finish="length", order=0)
    until(lambda: bool(senders[0].responses))
    server.run(ask(request_of))
    assert len(server.scheduler.orders) == 4


def test_a_client_that_has_gone_is_noticed(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    server.scheduler.say(21)
    until(lambda: bool(sender.responses))
    sender.cancelled = True
    until(lambda: bool(server.scheduler.cancelled))
    server.scheduler.say(finish="cancelled")
    until(lambda: sender.flags[-1] == 1)
    assert sender.responses[-1].tensors["finish_reason"][0, 0] == b"cancelled"


def test_a_stop_request_ends_the_one_of_its_id_only(server: Server, request_of: RequestOf) -> None:
    server.run(ask(request_of, identity="mine", streaming=True))
    server.run(ask(request_of, identity="other", streaming=True))
    sender = server.run(ask(request_of, identity="mine", stop=True))
    assert (sender.responses, sender.flags) == ([None], [1])
    assert server.scheduler.cancelled == [server.scheduler.orders[0].id]


def test_a_stop_request_without_an_id_stops_nothing(server: Server, request_of: RequestOf) -> None:
    server.run(ask(request_of))
    server.run(ask(request_of, stop=True))
    assert server.scheduler.cancelled == []


def test_failures_of_the_executor_are_told(server: Server, request_of: RequestOf, backend: Any) -> None:
    sender = server.run(ask(request_of))
    server.scheduler.say(finish="error", error="OutOfMemoryError: too much")
    until(lambda: bool(sender.responses))
    assert "too much" in str(sender.responses[0].error)
    server.scheduler.refuse = RuntimeError("odd")
    sender = server.run(ask(request_of))
    until(lambda: bool(sender.responses))
    assert "odd" in str(sender.responses[0].error)
    assert sender.responses[0].error.code == backend.TritonError.INTERNAL


def test_one_client_s_failure_ends_only_its_request(server: Server, request_of: RequestOf) -> None:
    broken, fine = server.run(ask(request_of)), server.run(ask(request_of))
    broken.broken = True
    server.scheduler.say(1, finish="length", order=0)
    server.scheduler.say(2, finish="length", order=1)
    until(lambda: bool(fine.responses))
    assert fine.responses[0].error is None
    # Its last response was lost in Triton, which then takes no other.
    assert (broken.responses, broken.closed) == ([], True)


def test_a_client_s_failure_midway_is_told_it(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    sender.broken = True
    server.scheduler.say(21)
    until(lambda: bool(sender.responses))
    assert "shared memory is full (the server failed)" in str(sender.responses[-1].error)
    assert sender.flags == [1]
    until(lambda: server.scheduler.cancelled == [server.scheduler.orders[0].id])


def test_a_missing_parameter_is_named(backend: Any) -> None:
    with pytest.raises(ValueError, match="parameter gpt_model_path is missing"):
        TensorrtLlm(arguments(), backend, lambda *_: (StandInScheduler(), StandInOrder))
