"""Clients that people use, each of a pinned version, in an environment of its own, against a real gateway."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openai_standin import StandIn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# Client -> what pip installs, and a program that prints what it has got as JSON.
CLIENTS = {
    "openai": (
        ["openai==3.3.0"],
        """
import openai
client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
found = []
for usage in (None, False, True):
    options = {} if usage is None else {"stream_options": {"include_usage": usage}}
    chunks = list(client.completions.create(model="tiny", prompt="x", stream=True, **options))
    found.append("".join(c.choices[0].text for c in chunks if c.choices))
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, stream=True, **options))
    found.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
answer = client.chat.completions.create(model="tiny", messages=messages)
found += [answer.choices[0].message.content, len(answer._request_id) > 8]
try:
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=1000)
except openai.BadRequestError as e:
    found += [e.code, e.param]
""",
        ["ab"] * 7 + [True, "context_length_exceeded", "max_tokens"],
    ),
    "langchain": (
        ["langchain-openai==1.7.4"],
        """
from langchain_openai import ChatOpenAI, OpenAI
chat = ChatOpenAI(model="tiny", base_url=base, api_key="none", max_retries=0)
found = [chat.invoke("x").content, "".join(c.content for c in chat.stream("x"))]
found.append(chat.invoke("x").usage_metadata["total_tokens"])
text = OpenAI(model="tiny", base_url=base, api_key="none", max_retries=0)
found += [text.invoke("x"), "".join(text.stream("x"))]
found.append([g[0].text for g in text.generate(["x", "y"]).generations])
calls = ChatOpenAI(model="other", base_url=base, api_key="none", max_retries=0)
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
found.append(calls.bind_tools([tool]).invoke("x").content)
""",
        ["ab", "ab", 7, "ab", "ab", ["ab", "ab"], "hi"],
    ),
    "instructor": (
        ["instructor==1.17.0"],
        """
import instructor, openai, pydantic
class Answer(pydantic.BaseModel):
    a: int
client = instructor.from_openai(
    openai.OpenAI(base_url=base, api_key="none", max_retries=0), mode=instructor.Mode.MD_JSON)
asked = dict(model="json", messages=messages, max_retries=0)
found = [client.chat.completions.create(response_model=Answer, **asked).a]
found.append([part.a for part in client.chat.completions.create_partial(response_model=Answer, **asked)][-1])
for mode, model in ((instructor.Mode.TOOLS, "calls"), (instructor.Mode.JSON_SCHEMA, "schema")):
    client = instructor.from_openai(
        openai.OpenAI(base_url=base, api_key="none", max_retries=0), mode=mode)
    asked = dict(model=model, messages=messages, max_retries=0)
    found.append(client.chat.completions.create(response_model=Answer, **asked).a)
    parts = client.chat.completions.create_partial(response_model=Answer, **asked)
    found.append([part.a for part in parts][-1])
""",
        [3] * 6,
    ),
    "litellm": (
        ["litellm==1.110.2"],
        """
import litellm
ask = {"model": "openai/tiny", "api_base": base, "api_key": "none", "num_retries": 0}
found = [litellm.completion(messages=messages, **ask).choices[0].message.content]
stream = litellm.completion(messages=messages, stream=True, **ask)
found.append("".join(c.choices[0].delta.content or "" for c in stream if c.choices))
text = {**ask, "model": "text-completion-openai/tiny"}
found.append(litellm.text_completion(prompt="x", **text).choices[0].text)
stream = litellm.text_completion(prompt="x", stream=True, **text)
found.append("".join(c.choices[0].text or "" for c in stream))
try:
    litellm.completion(messages=messages, max_tokens=1000, **ask)
except litellm.ContextWindowExceededError:
    found.append("context")
""",
        ["ab", "ab", "ab", "ab", "context"],
    ),
    "aiperf": (
        ["aiperf==0.13.0"],
        """
import os, subprocess, sys
found = []
modes = ("chat", "--streaming"), ("chat",), ("completions", "--streaming"), ("completions",)
for endpoint, *stream in modes:
    out = os.path.join(os.environ["HOME"], "-".join([endpoint, *stream]))
    words = [os.path.join(os.path.dirname(sys.executable), "aiperf"), "profile", "-m", "tiny"]
    words += ["-u", base.removesuffix("/v1"), "--endpoint-type", endpoint, *stream, "--tokenizer", tokenizer]
    words += ["--isl", "8", "--osl", "2", "--request-count", "8", "--concurrency", "2", "--ui", "none"]
    # Each of its processes imports for seconds.
    words += ["--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry"]
    subprocess.run([*words, "--artifact-dir", out], check=True, stdout=sys.stderr)
    told = json.load(open(f"{out}/profile_export_aiperf.json"))
    names = "request_count", "request_error_rate", "usage_prompt_tokens", "usage_completion_tokens"
    found.append([told[name]["avg"] for name in names])
    found[-1].append(told.get("time_to_first_token", {}).get("avg", 0) > 0)
    # It reads the gateway's own metrics, too.
    told = json.load(open(f"{out}/server_metrics_export.json"))
    rows = told["metrics"]["enginix_gateway_completion_tokens"]["series"]
    found[-1] += [row["stats"]["total"] for row in rows if row["labels"]["model"] == "tiny"]
""",
        [[8, 0, 5, 2, True, 16], [8, 0, 5, 2, False, 16]] * 2,
    ),
}
TOKENIZER = Path(__file__).parents[2] / "models" / "tiny-qwen3"


@pytest.fixture(scope="module")
def base(start_gateway: Callable[..., Any]) -> Iterator[str]:
    """A gateway over stand-ins: `tiny` says ab and holds 1000 tokens, the others say JSON in a way each."""
    tiny, says_json, calls, schema = StandIn(), StandIn(), StandIn(), StandIn()
    tiny.holds = 1000
    function = {"name": "Answer", "arguments": '{"a": 3}'}
    call = {"id": "call_1", "type": "function", "function": function}
    first = {**call, "index": 0, "function": {"name": "Answer", "arguments": ""}}
    calls.message = {"role": "assistant", "content": None, "tool_calls": [call]}
    calls.deltas = [
        {"role": "assistant", "tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "3}"}}]},
    ]
    schema.message = {"role": "assistant", "content": '{"a": 3}'}
    schema.deltas = [{"role": "assistant", "content": ""}, {"content": '{"a": '}, {"content": "3}"}]
    says_json.pieces = ["```json\n", '{"a"', ": 3}", "\n```"]
    triton = {"kind": "triton", "model": "ensemble"}
    models = {
        "tiny": [{**triton, "url": tiny.url}, {**triton, "url": tiny.url}],
        "json": [{**triton, "url": says_json.url}],
        "other": [{"kind": "openai", "url": f"{tiny.url}/v1", "model": "mine"}],
        "calls": [{"kind": "openai", "url": f"{calls.url}/v1", "model": "mine"}],
        "schema": [{"kind": "openai", "url": f"{schema.url}/v1", "model": "mine"}],
    }
    with start_gateway({"models": models, "keyFile": None}) as gateway:
        yield f"{gateway.url}/v1"
    for server in (tiny, says_json, calls, schema):
        server.shutdown()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_real_client(base: str, install: Callable[..., Path], name: str, tmp_path: Path) -> None:
    packages, program, wanted = CLIENTS[name]
    python = install(tmp_path / "environment", *packages)
    script = tmp_path / "client.py"
    head = f"import json\nbase, tokenizer = {base!r}, {str(TOKENIZER)!r}\n"
    head += "messages = [dict(role='user', content='x')]\n"
    script.write_text(head + program + "\nprint(json.dumps(found))\n")
    done = subprocess.run(
        [python, script], env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
