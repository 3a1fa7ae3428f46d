"""The gateway over LiteLLM's oldest supported version and its newest; a start that fails tells its cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import MachineError
from enginix.gateway import launch
from openai_standin import StandIn, openai_chunks

# nixpkgs' in April 2026, and whatever is newest today.
VERSIONS = ("==1.83.7", "")
# What LiteLLM's proxy imports and litellm itself does not require.
PROXY = (
    "fastapi uvicorn uvloop orjson backoff apscheduler pyjwt cryptography fastapi-sso python-multipart "
    "websockets redis soundfile httpx2 expression semver boto3 gunicorn mcp pynacl pyyaml rich rq httpx"
)


@pytest.fixture(scope="module", params=VERSIONS)
def litellm_python(
    request: Any, install: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Python of an environment that pip makes as a user's does."""
    # As nixpkgs had them beside it: the oldest LiteLLM does not stand newer ones.
    old = ["fastapi<0.130", "mcp<1.28", "uvicorn<0.41", "starlette<1", "redis<7"] if request.param else []
    return install(tmp_path_factory.mktemp("litellm"), f"litellm{request.param}", *PROXY.split(), *old)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_starts_and_answers(
    start_gateway: Callable[..., Any], litellm_python: Path, gateway_python: Path
) -> None:
    import openai

    standin = StandIn()
    triton = {"kind": "triton", "url": standin.url, "model": "ensemble"}
    other = {"kind": "openai", "url": f"{standin.url}/v1", "model": "theirs"}
    models = {"tiny": [triton], "two": [triton, triton], "other": [other]}
    with start_gateway({"models": models}, python=litellm_python) as gateway:
        client = gateway.client()
        said = [{"role": "user", "content": "x"}]
        for model, text in (("tiny", "ab"), ("two", "ab"), ("other", "hi")):
            whole = client.chat.completions.create(model=model, messages=said)
            assert whole.choices[0].message.content == text and whole.model == model
            for usage in (False, True):
                options = {"stream_options": {"include_usage": usage}}
                chunks = list(
                    client.chat.completions.create(model=model, messages=said, stream=True, **options)
                )
                assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
                assert [bool(c.usage) for c in chunks].count(True) == usage
        for model in ("tiny", "two"):
            assert client.completions.create(model=model, prompt="x").choices[0].text == "ab"
            chunks = list(client.completions.create(model=model, prompt="x", stream=True))
            assert "".join(c.choices[0].text for c in chunks) == "ab"
        # A stream without an end is an error in every version.
        *standin.rows, _ = openai_chunks("/v1/chat/completions", standin.deltas, usage=False)
        with pytest.raises(openai.APIError, match="finish_reason"):
            list(client.chat.completions.create(model="other", messages=said, stream=True))
    standin.shutdown()


def test_an_old_litellm_is_refused_by_its_version(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 1.82.6\n")
    python.chmod(0o755)
    with pytest.raises(MachineError, match=r"litellm 1\.82\.6 is older than 1\.83"):
        launch.require_litellm(python)
    for version in ("1.83.0", "1.110.2", "2.0.0rc1"):
        python.write_text(f"#!/bin/sh\necho {version}\n")
        assert launch.require_litellm(python) == version


def start_alone(python: Path, directory: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Runs the process that `enginix gateway` becomes, with a module that changes its start."""
    server = {"kind": "triton", "url": "http://h:1", "model": "e"}
    file = directory / "gateway.json"
    file.write_text(json.dumps({"version": 1, "name": "d", "models": {"m": [server]}}))
    (directory / "sitecustomize.py").write_text(source)
    options = launch.GatewayOptions(str(file), "127.0.0.1", 0, 30, 5)
    environment = {**launch.build_gateway_environment(), "PATH": os.environ["PATH"]}
    environment["PYTHONPATH"] += f":{directory}"
    return subprocess.run(
        launch.build_gateway_command(python, options),
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        # A version that does not fit, seen when its router is made; a package that its proxy imports.
        (
            "import os\nos.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'\nimport litellm\n"
            "def f(*a, **k): raise TypeError('odd router')\nlitellm.Router.__init__ = f\n",
            "odd router",
        ),
        ("import sys\nsys.modules['backoff'] = None\n", "backoff"),
    ],
)
def test_a_start_that_fails_says_why(gateway_python: Path, tmp_path: Path, source: str, said: str) -> None:
    done = start_alone(gateway_python, tmp_path, source)
    assert done.returncode == 5, done.stderr
    assert "error: LiteLLM does not start" in done.stderr and said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_crash_says_where(tmp_path: Path) -> None:
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    done = start_alone(Path(sys.executable), tmp_path, crash)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert f'File "{tmp_path}/sitecustomize.py", line 2 in <module>' in done.stderr
