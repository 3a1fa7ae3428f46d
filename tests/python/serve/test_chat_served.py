"""Messages on the real tritonserver: through the ensemble, the BLS, HTTP and gRPC, for every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.python.serve.test_kinds_load import repository, started
from tokenizers import Tokenizer, processors

from enginix.errors import MachineError
from enginix.serve.client import TritonClient
from enginix.triton.models import chat

pytestmark = pytest.mark.slow
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "This License — 🙂"}]
SAID = json.dumps(MESSAGES)
STAND_IN = Path(__file__).with_name("standin_chat.py")


@pytest.fixture
def prompt(served_engine: Path) -> str:
    return chat.load_chat_template(served_engine / "tokenizer").render(chat.Chat(MESSAGES, {}))


def test_messages_continue_the_template_s_text(running: Any, prompt: str) -> None:
    wanted = running.client.generate("ensemble", {"text_input": prompt, "max_tokens": 16, "end_id": -1})
    found = running.client.generate("ensemble", {"messages": SAID, "max_tokens": 16, "end_id": -1})
    assert found["text_output"] == wanted["text_output"] != ""
    assert (found["prompt_tokens"], found["completion_tokens"]) == (wanted["prompt_tokens"], 16)
    assert found["finish_reason"] == "length"
    body = {"messages": SAID, "max_tokens": 16, "end_id": -1, "stream": True}
    pieces = list(running.client.stream("ensemble", body))
    assert "".join(p["text_output"] for p in pieces) == wanted["text_output"]
    assert [p["completion_tokens"] for p in pieces][-1] == 16
    assert {p["prompt_tokens"] for p in pieces} == {wanted["prompt_tokens"]}
    without = json.dumps({"add_generation_prompt": False})
    other = {"messages": SAID, "chat_template_args": without, "max_tokens": 1}
    assert running.client.generate("ensemble", other)["prompt_tokens"] < wanted["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": "[{"}, "messages: not JSON"),
        ({"messages": json.dumps([{"role": "usr", "content": "a"}])}, "did you mean user?"),
        ({"messages": SAID, "text_input": "a"}, "both given"),
        ({"messages": SAID, "chat_template_args": '{"tols": []}'}, "does not read tols"),
        ({"mesages": SAID}, "did you mean messages?"),
    ],
)
def test_what_is_refused(running: Any, body: Any, expected: str) -> None:
    with pytest.raises(MachineError) as caught:
        running.client.generate("ensemble", {"max_tokens": 4, **body})
    assert expected in str(caught.value)
    with pytest.raises(MachineError) as caught:
        list(running.client.stream("ensemble", {"max_tokens": 4, "stream": True, **body}))
    assert expected in str(caught.value)


def text_tensor(client: Any, name: str, value: str) -> Any:
    tensor = client.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()]], np.object_))
    return tensor


def number_tensor(client: Any, name: str, value: int) -> Any:
    tensor = client.InferInput(name, [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], np.int32))
    return tensor


def test_over_grpc(running: Any, prompt: str) -> None:
    import queue

    import tritonclient.grpc as grpc

    wanted = running.client.generate("ensemble", {"text_input": prompt, "max_tokens": 8, "end_id": -1})
    inputs = [
        text_tensor(grpc, "messages", SAID),
        text_tensor(grpc, "chat_template_args", "{}"),
        number_tensor(grpc, "max_tokens", 8),
        number_tensor(grpc, "end_id", -1),
    ]
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.InferenceServerClient(f"127.0.0.1:{running.server.plan.endpoints.grpc}") as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        client.async_stream_infer("ensemble", inputs)
        result, error = found.get(timeout=600)
        assert error is None
        assert result.as_numpy("text_output")[0, 0].decode() == wanted["text_output"]
        assert result.as_numpy("prompt_tokens").item() == wanted["prompt_tokens"]
        assert result.as_numpy("completion_tokens").item() == 8
        client.async_stream_infer("ensemble", [text_tensor(grpc, "messages", "[]"), inputs[2]])
        _, error = found.get(timeout=600)
        assert "at least one message" in str(error)


@pytest.fixture
def begun_engine(served_engine: Path, tmp_path: Path) -> Path:
    """The engine's tokenizer, made to put a special token before every text; the template spells it out."""
    directory = tmp_path / "begun"
    shutil.copytree(served_engine / "tokenizer", directory / "tokenizer")
    path = directory / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    first = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
    )
    tokenizer.save(str(path))
    settings = json.loads((directory / "tokenizer" / "tokenizer_config.json").read_text())
    (directory / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps(settings | {"bos_token": first})
    )
    template = directory / "tokenizer" / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    return directory


@pytest.fixture(params=[True, False], ids=["decoupled", "one-response"])
def asked(
    request: pytest.FixtureRequest,
    tritonserver: Any,
    serving_python: Path,
    begun_engine: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., Any]]:
    """A tensorrt repository whose answers are what its executor was given."""
    directory = repository("tensorrt", begun_engine, tmp_path, request.param, STAND_IN)
    for model in ("tensorrt_llm", "postprocessing"):
        path = directory / model / "config.pbtxt"
        if "model_transaction_policy" not in path.read_text():
            path.write_text(path.read_text() + "\nmodel_transaction_policy { decoupled: false }\n")
    path = directory / "preprocessing" / "config.pbtxt"
    path.write_text(path.read_text() + "\nmodel_transaction_policy { decoupled: false }\n")
    with started(tritonserver, serving_python, directory, tmp_path, False) as (client, _):
        yield lambda model, **body: client.generate(model, {"max_tokens": 4, **body})


def test_nvidia_s_models_get_the_template_s_tokens(asked: Callable[..., Any], begun_engine: Path) -> None:
    prompt = chat.load_chat_template(begun_engine / "tokenizer").render(chat.Chat(MESSAGES, {}))
    assert prompt.startswith("<|endoftext|>")
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert asked(model, text_input="fox")["text_output"] == "<|endoftext|>fox"
        assert asked(model, messages=SAID)["text_output"] == prompt
        for body, expected in (
            ({"messages": "[]"}, "at least one message"),
            ({"messages": SAID, "text_input": "a"}, "both given"),
            ({}, "text_input is missing, and so are messages"),
        ):
            with pytest.raises(MachineError) as caught:
                asked(model, **body)
            assert expected in str(caught.value)


@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "one-response"])
def test_the_llm_class_gets_the_template_s_text(
    tritonserver: Any, serving_python: Path, begun_engine: Path, tmp_path: Path, decoupled: bool
) -> None:
    prompt = chat.load_chat_template(begun_engine / "tokenizer").render(chat.Chat(MESSAGES, {}))
    directory = repository("llmapi", begun_engine, tmp_path, decoupled, STAND_IN)
    with started(tritonserver, serving_python, directory, tmp_path, False) as (client, _):
        asked: TritonClient = client
        assert asked.generate("tensorrt_llm", {"text_input": "fox"})["text_output"] == "<|endoftext|>fox"
        assert asked.generate("tensorrt_llm", {"messages": SAID})["text_output"] == prompt
        with pytest.raises(MachineError, match="at least one message"):
            asked.generate("tensorrt_llm", {"messages": "[]"})
