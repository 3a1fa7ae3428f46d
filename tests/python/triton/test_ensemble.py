"""ensemble of kind reference: what becomes of a request's text, and of the tokens that answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from enginix.tables import load_table
from enginix.triton.contract import load_reference_contract
from enginix.triton.models.ensemble import Ensemble
from enginix.triton.models.prompt import PromptReader

from .conftest import StandInChannel, arguments, closes, until

RequestOf = Callable[..., Any]


def settings(engine: Any, **more: str) -> dict[str, str]:
    given = {
        "tokenizer_dir": str(engine.directory / "tokenizer"),
        "end_ids": "0,5",
        "max_tokens_limit": "20",
        "max_seq_len": "32",
        "cancellation_check_period_ms": "10",
    }
    return arguments(**{**given, **more})


class Server:
    """The model, and what it asks the executor for."""

    def __init__(self, model: Ensemble, channel: StandInChannel) -> None:
        self.model, self.channel = model, channel

    def run(self, request: Any) -> Any:
        assert self.model.execute([request]) is None
        return request.sender

    def refusal(self, request: Any) -> Any:
        """The error that a request gets at once, alone."""
        sender = self.run(request)
        (response,) = sender.responses
        assert (sender.flags, self.channel.orders) == ([1], {})
        return response.error


@pytest.fixture
def server(hand_made: Any, backend: Any) -> Iterator[Server]:
    channel = StandInChannel()
    made = Server(Ensemble(settings(hand_made), backend, channel), channel)
    yield made
    closes(made.model)


def ask(request_of: RequestOf, **more: Any) -> Any:
    return request_of(**{"text_input": "The quick fox", "max_tokens": 7, **more})


def text_of(sender: Any) -> str:
    return "".join(r.tensors["text_output"].item().decode() for r in sender.responses)


def test_a_text_becomes_an_order(server: Server, request_of: RequestOf, hand_made: Any) -> None:
    server.run(ask(request_of, identity="mine", stop_words=["dog", "", "."], stream=True, temperature=0.5))
    ((number, order),) = server.channel.orders.items()
    prompts = PromptReader(server.model._prompts._tokenizer, hand_made.directory / "tokenizer")
    assert order["prompt"] == prompts._encode("The quick fox", special=True)
    assert (order["max_tokens"], order["temperature"], order["end_ids"]) == (7, 0.5, [0, 5])
    assert server.channel.clients == {number: "mine"}


def test_no_request_copies_the_vocabulary(
    server: Server, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library counts a vocabulary by a copy of it: 0.2 s for 150,000 tokens."""
    tokenizer = Mock(wraps=server.model._prompts._tokenizer)
    monkeypatch.setattr(server.model._prompts, "_tokenizer", tokenizer)
    server.run(ask(request_of))
    server.run(ask(request_of, end_id=9))
    assert {call[0] for call in tokenizer.method_calls} == {"encode_batch_fast"}


@pytest.mark.parametrize(
    ("end_id", "expected"), [(None, [0, 5]), (0, [0, 5]), (5, [0, 5]), (9, [9]), (-1, [])]
)
def test_end_ids(server: Server, request_of: RequestOf, end_id: int | None, expected: list[int]) -> None:
    server.run(ask(request_of, **({} if end_id is None else {"end_id": end_id})))
    assert next(iter(server.channel.orders.values()))["end_ids"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"top_k": 40}, (1.0, 40, 1.0)),
        ({"top_p": 0.5}, (1.0, 0, 0.5)),
        # TensorRT-LLM: greedy without top_k, no limit beside one.
        ({"temperature": 0.9, "top_p": 0.0}, (0.0, 0, 1.0)),
        ({"temperature": 0.9, "top_k": 0, "top_p": 0.0}, (0.0, 0, 1.0)),
        ({"temperature": 0.5, "top_k": 7, "top_p": 0.0}, (0.5, 7, 1.0)),
        ({"temperature": 0.5, "top_k": 0}, (0.5, 0, 1.0)),
        ({"temperature": 2.0, "top_k": 1}, (0.0, 0, 1.0)),
    ],
)
def test_sampling_by_the_ensemble_s_names(
    server: Server, request_of: RequestOf, given: Any, expected: tuple[float, int, float]
) -> None:
    server.run(ask(request_of, **{k: np.array([[v]]) for k, v in given.items()}))
    order = next(iter(server.channel.orders.values()))
    assert (order["temperature"], order["top_k"], order["top_p"]) == expected


@pytest.mark.parametrize(
    ("inputs", "extra", "expected"),
    [
        ({"text_input": ""}, {}, "text_input is empty"),
        ({"text_input": np.array([[b"\xff\xfe"]], np.object_)}, {}, "text_input: not UTF-8 at byte 0"),
        ({"text_input": np.array([[b"a"], [b"b"]], np.object_)}, {}, "text_input: 2 rows"),
        ({"max_tokens": 0}, {}, "max_tokens: 0 is not at least 1"),
        ({"max_tokens": 21}, {}, "max_tokens: 21 is above this server's limit of 20"),
        ({"max_tokens": 20, "text_input": "a b c d e f g h i j"}, {}, "at most"),
        ({"text_input": "x" * 500}, {}, "the engine holds 32"),
        ({"bad_words": ["no"]}, {}, "bad_words: enginix's executor cannot ban words"),
        ({"beam_width": 4}, {}, "beam_width: 4 is not supported by enginix's executor, only 1"),
        ({"length_penalty": 2.0}, {}, "length_penalty: 2.0 is not supported by enginix's executor"),
        ({"temperature": float("nan")}, {}, "temperature: nan is not a number"),
        ({"top_k": -2}, {}, "top_k: -2 is not at least 0"),
        ({"top_p": 1.5}, {}, "top_p: 1.5 is not between 0 and 1"),
        ({"repetition_penalty": 0.0}, {}, "repetition_penalty: 0.0 is not above 0"),
        ({"seed": np.array([[1, 2]])}, {}, "seed: 2 values where one is expected"),
        ({}, {"temprature": 1}, "temprature: no such input; did you mean temperature?"),
        ({}, {"lora_task_id": 1}, "lora_task_id: enginix's executor does not support it"),
    ],
)
def test_what_is_refused(
    server: Server, request_of: RequestOf, backend: Any, inputs: Any, extra: Any, expected: str
) -> None:
    error = server.refusal(request_of(extra=extra, **{"text_input": "fox", "max_tokens": 7, **inputs}))
    assert expected in str(error)
    assert error.code == backend.TritonError.INVALID_ARG


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    server: Server, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouched(*_: Any, **__: Any) -> tuple[int, ...]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(server.model._prompts, "_encode", untouched)
    error = server.refusal(ask(request_of, text_input="word " * 10_000))
    assert "50000 characters; the engine's 32 tokens spell at most" in str(error)


# Padding is for executors that take prompts of one length.
UNREAD = {"pad_id"}


@pytest.mark.parametrize("name", [t.name for t in load_reference_contract()["ensemble"].inputs])
def test_every_input_that_is_declared_is_looked_at(server: Server, request_of: RequestOf, name: str) -> None:
    """Triton accepts every input that config.pbtxt declares; the model would ignore an unread one."""
    kind = next(t.type for t in load_reference_contract()["ensemble"].inputs if t.name == name)
    two = {"STRING": np.array([[b"a"], [b"b"]], np.object_), "BOOL": np.array([[False], [False]])}
    rows = two.get(kind, np.array([[1], [1]]))
    given = {"max_tokens": 7, **({} if name == "messages" else {"text_input": "fox"}), name: rows}
    request = request_of(**given)
    if name in UNREAD:
        server.run(request)
        assert len(server.channel.orders) == 1
    else:
        assert f"{name}: 2 rows" in str(server.refusal(request))


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_too_many_texts(server: Server, request_of: RequestOf, name: str) -> None:
    assert f"{name}: 1025 texts; at most 1024" in str(server.refusal(ask(request_of, **{name: ["x"] * 1025})))


def test_triton_s_own_parameters_pass(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, extra={"id": "x", "triton_enable_empty_final_response": True}))
    assert not sender.responses
    assert server.channel.orders


@pytest.mark.parametrize("name", ["user", "binary_data_output", "enginix_key", "random_seed", "a b", ""])
def test_no_other_name_is_ignored(server: Server, request_of: RequestOf, name: str) -> None:
    assert str(server.refusal(ask(request_of, extra={name: 1}))).startswith(f"{name}: no such input; ")


def test_other_names_lead_to_inputs() -> None:
    """What a refusal proposes can be sent, and is not itself refused as such a name."""
    known = {t.name for t in load_reference_contract()["ensemble"].inputs}
    names = load_table("triton_reference")["otherNames"]["names"]
    assert not known & set(names)
    assert {name.partition(":")[0] for name in names.values()} <= known | {"bad_words"}


@pytest.mark.parametrize("end_id", [50256, 2**31 - 1])
def test_an_end_id_that_no_token_has(server: Server, request_of: RequestOf, end_id: int) -> None:
    assert f"end_id: {end_id} is not one of the model's" in str(
        server.refusal(ask(request_of, end_id=end_id))
    )


def test_one_bad_request_spoils_no_other(server: Server, request_of: RequestOf) -> None:
    requests = [ask(request_of), ask(request_of, text_input=""), ask(request_of)]
    server.model.execute(requests)
    assert [len(r.sender.responses) for r in requests] == [0, 1, 0]
    assert len(server.channel.orders) == 2


def test_the_pieces_are_the_text_of_the_whole(server: Server, request_of: RequestOf) -> None:
    ids = server.model._prompts._encode(" naïve 𝄞", special=False)
    assert len(ids) > 4
    whole, streamed = server.run(ask(request_of)), server.run(ask(request_of, stream=True))
    for number in server.channel.orders:
        server.channel.say(number, *ids, finish="length")
    until(lambda: whole.flags[-1:] == [1] and streamed.flags[-1:] == [1])
    assert len(whole.responses) == 1
    assert text_of(whole) == text_of(streamed) == " naïve 𝄞"
    assert len(streamed.responses) == len(ids)
    assert not any("\ufffd" in r.tensors["text_output"].item().decode() for r in streamed.responses)
    last = streamed.responses[-1].tensors
    assert (last["finish_reason"].item(), last["completion_tokens"].item()) == (b"length", len(ids))
    assert [r.tensors["finish_reason"].item() for r in streamed.responses[:-1]] == [b""] * (len(ids) - 1)


def test_an_answer_of_nothing(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, return_num_input_tokens=True, return_num_output_tokens=True))
    server.channel.say(next(iter(server.channel.orders)), 5, finish="stop")
    until(lambda: sender.flags == [1])
    assert text_of(sender) == ""
    found = sender.responses[0].tensors
    assert found["num_output_tokens"].item() == 0
    assert found["num_input_tokens"].item() == found["prompt_tokens"].item() > 2


def test_the_prompt_comes_first_where_it_is_wanted(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, text_input="The quick", exclude_input_in_output=False))
    (token, *_) = server.model._prompts._encode(" fox", special=False)
    server.channel.say(next(iter(server.channel.orders)), token, finish="length")
    until(lambda: sender.flags == [1])
    assert text_of(sender).startswith("The quick ")


def test_a_stop_word_ends_and_is_not_shown(server: Server, request_of: RequestOf) -> None:
    sender = server.run(ask(request_of, stream=True, stop_words=["𝄞"]))
    number = next(iter(server.channel.orders))
    said = [server.model._prompts._encode(text, special=False) for text in ("fox", "𝄞", " dog")]
    assert len(said[1]) == 4
    server.channel.say(number, *(token for ids in said for token in ids))
    until(lambda: sender.flags[-1:] == [1])
    assert text_of(sender) == "fox"
    assert sender.responses[-1].tensors["finish_reason"].item() == b"stop"
    until(lambda: server.channel.cancelled == [number])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_gone_ends_its_generation(
    server: Server, request_of: RequestOf, stream: bool
) -> None:
    other, gone = server.run(ask(request_of, stream=True)), server.run(ask(request_of, stream=stream))
    server.channel.say(next(iter(server.channel.orders)), 21)
    until(lambda: bool(other.responses))
    gone.cancelled = True
    until(lambda: bool(server.channel.cancelled))
    assert server.channel.cancelled[0] == list(server.channel.orders)[1]


@pytest.mark.parametrize(
    ("finish", "code"), [("error", "INTERNAL"), ("refused", "INVALID_ARG"), ("full", "UNAVAILABLE")]
)
def test_what_the_executor_refuses_is_told(
    server: Server, request_of: RequestOf, backend: Any, finish: str, code: str
) -> None:
    sender = server.run(ask(request_of))
    server.channel.say(next(iter(server.channel.orders)), finish=finish, error="because")
    until(lambda: sender.flags == [1])
    assert str(sender.responses[0].error) == (
        "because (the server failed)" if finish == "error" else "because"
    )
    assert sender.responses[0].error.code == getattr(backend.TritonError, code)


def test_parameters_are_named(backend: Any, hand_made: Any) -> None:
    with pytest.raises(ValueError, match="parameter tokenizer_dir is missing"):
        Ensemble(arguments(), backend, StandInChannel())
    with pytest.raises(ValueError, match="skip_special_tokens is 'yes'"):
        Ensemble(settings(hand_made, skip_special_tokens="yes"), backend, StandInChannel())


def test_special_tokens_are_shown_where_it_is_wanted(
    backend: Any, hand_made: Any, request_of: RequestOf
) -> None:
    for skip, expected in (("true", ""), ("false", "<|end|>")):
        channel = StandInChannel()
        server = Server(Ensemble(settings(hand_made, skip_special_tokens=skip), backend, channel), channel)
        sender = server.run(ask(request_of, end_id=-1))
        server.channel.say(next(iter(channel.orders)), 0, finish="length")
        until(lambda sender=sender: sender.flags == [1])  # type: ignore[misc]
        assert text_of(sender) == expected
        closes(server.model)


def test_it_needs_neither_torch_nor_transformers() -> None:
    import os
    import subprocess
    import sys

    import enginix

    script = (
        "import sys, enginix.triton.models.ensemble;"
        "print([n for n in ('torch', 'transformers', 'tritonclient') if n in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(enginix.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
