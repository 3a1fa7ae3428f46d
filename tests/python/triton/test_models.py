"""The models that a repository ships, against a stand-in for Triton's Python backend."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginix.triton.models.postprocessing import Postprocessing
from enginix.triton.models.preprocessing import Preprocessing
from enginix.triton.models.tensorrt_llm import TensorrtLlm

RequestOf = Callable[..., Any]


def arguments(max_batch_size: int = 4, **parameters: str) -> dict[str, str]:
    """What Triton passes to initialize."""
    entries = {key: {"string_value": value} for key, value in parameters.items()}
    return {"model_config": json.dumps({"max_batch_size": max_batch_size, "parameters": entries})}


@pytest.fixture
def preprocessing(hand_made: Any, backend: Any) -> Preprocessing:
    return Preprocessing(
        arguments(
            tokenizer_dir=str(hand_made.directory / "tokenizer"),
            end_ids="0,5",
            pad_id="3",
            max_tokens_limit="20",
            max_seq_len="32",
        ),
        backend,
    )


def test_preprocessing(preprocessing: Preprocessing, request_of: RequestOf) -> None:
    request = request_of(QUERY="The quick fox", REQUEST_OUTPUT_LEN=7, STOP_WORDS_DICT=["dog", "", "."])
    (response,) = preprocessing.execute([request])
    assert response.error is None
    ids, length = response.tensors["INPUT_ID"], response.tensors["REQUEST_INPUT_LEN"]
    assert ids.dtype == np.int32
    assert ids.shape == (1, int(length[0, 0]))
    assert response.tensors["REQUEST_OUTPUT_LEN"].tolist() == [[7]]
    assert response.tensors["OUT_END_ID"].tolist() == [[0]]
    assert response.tensors["OUT_PAD_ID"].tolist() == [[3]]
    flat, ends = response.tensors["STOP_WORDS_IDS"][0]
    assert [e for e in ends if e >= 0][-1] == len(flat)
    assert len([e for e in ends if e >= 0]) == 2


def test_end_id_of_the_request_wins(preprocessing: Preprocessing, request_of: RequestOf) -> None:
    (response,) = preprocessing.execute([request_of(QUERY="a", REQUEST_OUTPUT_LEN=1, END_ID=-1, PAD_ID=9)])
    assert (response.tensors["OUT_END_ID"].tolist(), response.tensors["OUT_PAD_ID"].tolist()) == (
        [[-1]],
        [[9]],
    )


@pytest.mark.parametrize(
    ("inputs", "extra", "expected"),
    [
        ({"QUERY": ""}, {}, "text_input is empty"),
        ({"QUERY": np.array([[b"\xff\xfe"]], np.object_)}, {}, "QUERY: not UTF-8 at byte 0"),
        ({"QUERY": np.array([[b"a"], [b"b"]], np.object_)}, {}, "QUERY: 2 rows"),
        ({"REQUEST_OUTPUT_LEN": 0}, {}, "max_tokens: 0 is not at least 1"),
        ({"REQUEST_OUTPUT_LEN": 21}, {}, "max_tokens: 21 is above this server's limit of 20"),
        ({"QUERY": "a b c d e f g h i j"}, {}, "at most"),
        ({"QUERY": "x" * 500}, {}, "the engine holds 32"),
        ({"BAD_WORDS_DICT": ["no"]}, {}, "bad_words: the reference executor cannot ban words"),
        ({}, {"temprature": 1}, "temprature: no such input; did you mean temperature?"),
        ({}, {"lora_task_id": 1}, "lora_task_id: the reference executor does not support it"),
    ],
)
def test_preprocessing_refuses(
    preprocessing: Preprocessing, request_of: RequestOf, backend: Any, inputs: Any, extra: Any, expected: str
) -> None:
    (response,) = preprocessing.execute(
        [request_of(extra=extra, **{"QUERY": "fox", "REQUEST_OUTPUT_LEN": 20, **inputs})]
    )
    assert expected in str(response.error)
    assert response.error.code == backend.TritonError.INVALID_ARG


def test_foreign_parameters_pass(preprocessing: Preprocessing, request_of: RequestOf) -> None:
    request = request_of(extra={"binary_data_output": True, "user": "x"}, QUERY="a", REQUEST_OUTPUT_LEN=1)
    assert preprocessing.execute([request])[0].error is None


def test_one_bad_request_spoils_no_other(preprocessing: Preprocessing, request_of: RequestOf) -> None:
    good, bad = request_of(QUERY="a", REQUEST_OUTPUT_LEN=1), request_of(QUERY="", REQUEST_OUTPUT_LEN=1)
    assert [r.error is None for r in preprocessing.execute([good, bad, good])] == [True, False, True]


@pytest.fixture
def postprocessing(hand_made: Any, backend: Any) -> Postprocessing:
    return Postprocessing(arguments(tokenizer_dir=str(hand_made.directory / "tokenizer")), backend)


def chunk_of(request_of: RequestOf, ids: list[int], **more: Any) -> Any:
    return request_of(
        TOKENS_BATCH=np.array([[ids]], np.int32), SEQUENCE_LENGTH=np.array([[len(ids)]]), **more
    )


def test_postprocessing(
    postprocessing: Postprocessing, preprocessing: Preprocessing, request_of: RequestOf
) -> None:
    ids = (
        preprocessing.execute([request_of(QUERY=" naïve 🙂", REQUEST_OUTPUT_LEN=1)])[0]
        .tensors["INPUT_ID"][0]
        .tolist()
    )
    (whole,) = postprocessing.execute([chunk_of(request_of, ids)])
    assert whole.tensors["OUTPUT"].tolist() == [[" naïve 🙂".encode()]]
    pieces = []
    for i, token in enumerate(ids):
        (part,) = postprocessing.execute(
            [
                chunk_of(
                    request_of,
                    [token],
                    CONTEXT_IDS=np.array([ids[:i]], np.int32),
                    IS_FINAL=np.array([[i == len(ids) - 1]]),
                )
            ]
        )
        pieces.append(part.tensors["OUTPUT"][0, 0].decode())
    assert "".join(pieces) == " naïve 🙂"
    assert not any("\ufffd" in p for p in pieces)


def test_postprocessing_of_nothing(postprocessing: Postprocessing, request_of: RequestOf) -> None:
    (response,) = postprocessing.execute([chunk_of(request_of, [])])
    assert response.tensors["OUTPUT"].tolist() == [[b""]]


def test_postprocessing_refuses_shapes_that_do_not_fit(
    postprocessing: Postprocessing, request_of: RequestOf
) -> None:
    request = request_of(TOKENS_BATCH=np.zeros((1, 2, 3), np.int32), SEQUENCE_LENGTH=np.array([[3]]))
    assert "one length a beam" in str(postprocessing.execute([request])[0].error)


def test_a_client_that_has_gone_stops_its_generation(
    postprocessing: Postprocessing, request_of: RequestOf, backend: Any
) -> None:
    request = chunk_of(
        request_of, [7], IS_FINAL=np.array([[False]]), GENERATION_ID=np.array([[2**62 + 1]], np.uint64)
    )
    request.cancelled = True
    assert postprocessing.execute([request])[0].error is None  # an error would wedge Triton's ensemble
    (stop,) = backend.InferenceRequest.made
    assert (stop["model_name"], stop["request_id"]) == ("tensorrt_llm", str(2**62 + 1))
    assert {t.name(): t.value.tolist() for t in stop["inputs"]}["stop"] == [[True]]


def test_a_stream_is_asked_about_now_and_then_and_never_at_its_end(
    postprocessing: Postprocessing, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = 100.0, []
    monkeypatch.setattr("enginix.triton.models.postprocessing.time.monotonic", lambda: now)

    def chunk(number: int, final: bool) -> None:
        given = {"IS_FINAL": np.array([[final]]), "GENERATION_ID": np.array([[number]], np.uint64)}
        request = chunk_of(request_of, [7], **given)
        request.is_cancelled = lambda: asked.append((now, number))
        assert postprocessing.execute([request])[0].error is None

    for step in range(11):
        now = 100.0 + step / 32
        chunk(1, final=False)
        chunk(2, final=step == 0)
    chunk(1, final=True)
    # 2 ended with its first chunk; what came of it later is taken for another stream.
    assert [at for at, number in asked if number == 1] == [100.0, 100.125, 100.25]
    assert (100.03125, 2) in asked


@dataclass(frozen=True)
class Order:
    """Stands in for the scheduler's Request."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_tokens: int
    repetition_penalty: float
    logprobs: bool


@dataclass(frozen=True)
class Event:
    id: str
    token: int | None
    logprob: float | None
    finish: str | None
    error: str | None = None


class StandInScheduler:
    """Stands in for the reference executor's scheduler: says what a test tells it to."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.sinks: dict[str, Callable[[Event], None]] = {}
        self.cancelled: list[str] = []
        self.refuse: Exception | None = None

    def add(self, order: Order, sink: Callable[[Event], None]) -> None:
        if self.refuse:
            raise self.refuse
        self.orders.append(order)
        self.sinks[order.id] = sink

    def cancel(self, number: str) -> bool:
        self.cancelled.append(number)
        return True

    def close(self) -> None:
        pass

    def say(self, *tokens: int, finish: str | None = None, order: int = -1, error: str | None = None) -> None:
        number = self.orders[order].id
        for i, token in enumerate(tokens):
            self.sinks[number](Event(number, token, -0.5, finish if i == len(tokens) - 1 else None))
        if not tokens:
            self.sinks[number](Event(number, None, None, finish, error))


@dataclass
class Server:
    model: TensorrtLlm
    scheduler: StandInScheduler

    def run(self, request: Any) -> Any:
        assert self.model.execute([request]) is None
        return request.sender


@pytest.fixture
def server(backend: Any) -> Iterator[Server]:
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
        lambda path, device, batch: (scheduler, Order),
    )
    yield Server(model, scheduler)
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.005)


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
    assert response.tensors["context_ids"].tolist() == [[11, 12, 13]]
    assert response.tensors["is_final"].tolist() == [[True]]
    assert response.tensors["finish_reason"].tolist() == [[b"stop"]]
    assert response.tensors["cum_log_probs"].tolist() == [[-1.0]]
    assert response.tensors["output_log_probs"].tolist() == [[[-0.5, -0.5]]]
    assert response.tensors["num_input_tokens"].tolist() == [[3]]
    assert response.tensors["num_output_tokens"].tolist() == [[2]]


def test_streaming_sends_every_token_with_its_context(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    server.scheduler.say(21, 22, 23, finish="length")
    until(lambda: len(sender.responses) == 3)
    assert [r.tensors["output_ids"].reshape(-1).tolist() for r in sender.responses] == [[21], [22], [23]]
    assert [r.tensors["context_ids"].reshape(-1).tolist() for r in sender.responses] == [
        [11, 12, 13],
        [11, 12, 13, 21],
        [11, 12, 13, 21, 22],
    ]
    assert sender.flags == [0, 0, 1]
    assert [r.tensors["finish_reason"][0, 0] for r in sender.responses] == [b"", b"", b"length"]


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
    assert sender.responses[0].tensors["context_ids"].size == 0


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
    server: Server, request_of: RequestOf
) -> None:
    # Few streams would get each token as it comes.
    server.model._capacity = 0
    for _ in range(4):
        server.run(ask(request_of, streaming=True))
    sender = server.run(ask(request_of, streaming=True))
    send = sender.send

    def expensive(*a: Any, **k: Any) -> None:
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
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
        ({"beam_width": 4}, "beam_width: 4 is not supported by the reference executor, only 1"),
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
    assert [bool(s.responses) for s in senders] == [False, False, False, True]
    assert senders[3].responses[0].error.code == backend.TritonError.UNAVAILABLE
    server.scheduler.say(1, finish="length", order=0)
    until(lambda: bool(senders[0].responses))
    assert not server.run(ask(request_of)).responses


def test_a_client_that_has_gone_is_noticed(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, streaming=True))
    server.scheduler.say(21)
    until(lambda: bool(sender.responses))
    sender.cancelled = True
    until(lambda: bool(server.scheduler.cancelled))
    server.scheduler.say(finish="cancelled")
    until(lambda: sender.flags[-1] == 1)
    assert sender.responses[-1].tensors["finish_reason"][0, 0] == b"cancelled"


@pytest.mark.parametrize("whose", ["client", "generation"])
def test_a_stop_request_ends_the_one_of_its_id_only(
    server: Server, request_of: RequestOf, whose: str
) -> None:
    server.run(ask(request_of, identity="mine", streaming=True))
    server.run(ask(request_of, identity="other", streaming=True))
    identity = "mine" if whose == "client" else server.scheduler.orders[0].id
    stop = ask(request_of, identity=identity, stop=True)
    sender = server.run(stop)
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
    assert "odd" in str(sender.responses[0].error)
    assert sender.responses[0].error.code == backend.TritonError.INTERNAL


def test_one_client_s_failure_ends_only_its_request(server: Server, request_of: RequestOf) -> None:
    broken, fine = server.run(ask(request_of)), server.run(ask(request_of))
    broken.broken = True
    server.scheduler.say(1, finish="length", order=0)
    server.scheduler.say(2, finish="length", order=1)
    until(lambda: bool(fine.responses) and bool(broken.responses))
    assert "shared memory is full" in str(broken.responses[-1].error)
    assert fine.responses[0].error is None


def test_a_missing_parameter_is_named(backend: Any) -> None:
    with pytest.raises(ValueError, match="parameter gpt_model_path is missing"):
        TensorrtLlm(arguments(), backend, lambda *_: (StandInScheduler(), Order))
    with pytest.raises(ValueError, match="parameter tokenizer_dir is missing"):
        Postprocessing(arguments(), backend)


def test_a_boolean_parameter_is_true_or_false(backend: Any, tmp_path: Path, hand_made: Any) -> None:
    with pytest.raises(ValueError, match="skip_special_tokens is 'yes'"):
        Postprocessing(
            arguments(tokenizer_dir=str(hand_made.directory / "tokenizer"), skip_special_tokens="yes"),
            backend,
        )


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    preprocessing: Preprocessing, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouched(*_: Any, **__: Any) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(preprocessing, "_encode", untouched)
    (response,) = preprocessing.execute([request_of(QUERY="word " * 10_000, REQUEST_OUTPUT_LEN=1)])
    assert "50000 characters; the engine's 32 tokens spell at most" in str(response.error)
