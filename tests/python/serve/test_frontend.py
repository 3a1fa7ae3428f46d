"""Triton's own OpenAI frontend: its options, its directory, and real starts inside the image.

main.py, the bindings and the image are stand-ins (tests/standin); bubblewrap, signals, ports and the command
are real. The stand-in takes the options that main.py of the image's Triton version has, and no others.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.python.serve.test_image import (  # noqa: F401
    SITE,
    as_root,
    command,
    driver,
    repository,
    rootfs,
    run,
    serving,
    started,
)

from enginix.cli import main
from enginix.errors import EXIT_MACHINE, EXIT_USAGE, MachineError, UsageError
from enginix.runtime import table as runtimes
from enginix.runtime.child import descendants
from enginix.serve.frontend import Frontend, around, checked, find, prepare
from enginix.serve.ports import reserve
from enginix.serve.tritonserver import TritonServer
from enginix.tables import table

TESTS = Path(__file__).parents[2]
ROWS = table("triton_openai")["options"]
VERSIONS = ["2.64.0", "2.65.0", "2.68.0", "2.70.0", "2.71.0"]


@pytest.fixture(scope="session")
def parser() -> Callable[[str], Any]:
    """The stand-in's argparse, by version."""
    names = ("tritonserver", "tritonfrontend", "tensorrt_llm")
    for name in names:
        module = types.ModuleType(name)
        module.STANDIN = True  # type: ignore[attr-defined]
        module.standin_tritonserver = None  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        found = runpy.run_path(str(TESTS / "standin" / "openai_frontend" / "main.py"))["arguments"]
    finally:
        for name in names:
            del sys.modules[name]
    return lambda version: found(tuple(map(int, version.split(".")[:2])))


def value_of(row: dict[str, Any]) -> st.SearchStrategy[str]:
    if row["type"] == "choice":
        return st.sampled_from(row["choices"])
    return st.integers(1, 999999).map(str) if row["type"] == "int" else st.text(max_size=8)


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    names = draw(st.lists(st.sampled_from(sorted(ROWS)), max_size=3))
    return [f"{n}={draw(value_of(ROWS[n]) | st.text(max_size=6))}" for n in names]


@given(given=options(), version=st.sampled_from(VERSIONS), key=st.none() | st.just("k" * 20))
def test_what_is_let_through_the_frontend_takes(
    parser: Callable[[str], Any], given: list[str], version: str, key: str | None
) -> None:
    try:
        flags = checked(given, version)
    except UsageError as e:
        assert e.fix or "is n" in e.what or "twice" in e.what
        return
    frontend = Frontend(Path("/f"), "python3", Path("/t"), 9000, flags, key)
    words = frontend.command(Path("/w/models"), "127.0.0.1", 8000, 8001, 0, "mark")
    assert words[:4] == ["python3", "-X", "mark", "/f/openai_frontend/main.py"]
    parsed = parser(version).parse_args(words[4:])
    assert (parsed.host, parsed.kserve_http_port, parsed.openai_port) == ("127.0.0.1", 8000, 9000)
    assert getattr(parsed, "model_control_mode", "none") == "none"
    for text in given:
        name, _, value = text.partition("=")
        assert str(getattr(parsed, name.replace("-", "_"))) == value
    assert parsed.openai_restricted_api == (
        [] if key is None else [["inference,model-repository,metrics", "authorization", f"Bearer {key}"]]
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_is_the_frontend_s_own_options(parser: Callable[[str], Any], version: str) -> None:
    numbers = tuple(map(int, version.split(".")))
    known = {n for n, r in ROWS.items() if tuple(map(int, r.get("since", "0").split("."))) <= numbers}
    taken = {word[2:] for action in parser(version)._actions for word in action.option_strings}
    assert known == taken - {"help", ""}


@given(st.text(max_size=20))
def test_garbage_is_refused(text: str) -> None:
    if text.removeprefix("--").partition("=")[0] not in ROWS:
        with pytest.raises(UsageError):
            checked([text], "2.71.0")


@pytest.mark.parametrize(
    ("text", "version", "said"),
    [
        ("default-max-token=3", "2.71.0", "default-max-tokens"),
        ("http-max-input-size=1", "2.68.0", "2.70.0 brought it"),
        ("host=0.0.0.0", "2.71.0", "enginix writes it itself"),
        ("model-control-mode=explicit", "2.71.0", "none, its default"),
        ("tool-call-parser=qwen", "2.71.0", "llama3, mistral"),
        ("default-max-tokens=0", "2.71.0", "whole number"),
    ],
)
def test_a_refused_option_says_why(text: str, version: str, said: str) -> None:
    with pytest.raises(UsageError) as e:
        checked([text], version)
    assert said in f"{e.value}{e.value.fix}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What :func:`prepare` reads of an image."""
    root = tmp_path / "image"
    (root / SITE[1:]).mkdir(parents=True)
    (root / "opt/tritonserver").mkdir(parents=True)
    subprocess.run(["bash", str(TESTS / "standin" / "openai.sh"), str(root), SITE], check=True)
    return root


RUNTIME = runtimes.find("trtllm-1.2.1")


def test_prepared_from_an_image(image: Path, tmp_path: Path) -> None:
    versions = prepare(image, RUNTIME, tmp_path / "out")
    assert versions["tritonserver"] == "0.0.0" and "partial-json-parser" in versions
    found = find(tmp_path / "out", RUNTIME, Path("/t"), 9000, (), None)
    assert found.python == "/opt/venv-tritonserver/bin/python3"
    assert (found.directory / "site/tritonfrontend/__init__.py").is_file()


def _break(image: Path, how: str) -> None:
    python = image / "opt/tritonserver/python"
    if how == "main":
        (python / "openai/openai_frontend/main.py").unlink()
    elif how == "wheel":
        next(python.glob("tritonfrontend-*.whl")).unlink()
    elif how == "truncated":
        next(python.glob("tritonserver-*.whl")).write_bytes(b"PK\3\4 cut")
    elif how == "escape":
        with zipfile.ZipFile(next(python.glob("tritonserver-*.whl")), "a") as archive:
            archive.writestr("../../outside", "x")
    else:
        (image / SITE[1:] / "uvicorn-0.0.0.dist-info").rmdir()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("main", "main.py is missing"),
        ("wheel", "0 wheels of tritonfrontend"),
        ("truncated", "not a wheel"),
        ("escape", "leads out of it"),
        ("package", "the image lacks uvicorn"),
    ],
)
def test_a_broken_image_is_refused_and_leaves_nothing(
    image: Path, tmp_path: Path, how: str, said: str
) -> None:
    _break(image, how)
    with pytest.raises(MachineError, match=said):
        prepare(image, RUNTIME, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside").exists()


def test_the_source_may_come_from_elsewhere(image: Path, tmp_path: Path) -> None:
    (image / "opt/tritonserver/python/openai").rename(tmp_path / "openai")
    prepare(image, RUNTIME, tmp_path / "out", tmp_path / "openai")
    assert (tmp_path / "out/openai_frontend/main.py").is_file()


def test_a_runtime_without_triton_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no Triton"):
        prepare(tmp_path, runtimes.find("trtllm-1.3.0rc26"), tmp_path / "out")


@pytest.fixture(scope="module")
def prepared(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    if not (rootfs / "opt/tritonserver/python").exists():
        subprocess.run(["bash", str(TESTS / "standin" / "openai.sh"), str(rootfs), SITE], check=True)
    out = tmp_path_factory.mktemp("frontend") / "out"
    assert (
        main(["openai-frontend", "--rootfs", str(rootfs), "--model-runtime", RUNTIME.id, "-o", str(out)]) == 0
    )
    return out


def ask(port: int, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


CHAT = {"model": "ensemble", "messages": [{"role": "user", "content": "Once"}]}


@pytest.mark.slow
def test_it_serves_both_interfaces_in_the_image(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
    tmp_path: Path,
) -> None:
    key = "sk-0123456789abcdefghij"
    (tmp_path / "key").write_text(key + "\n")
    [port] = reserve("127.0.0.1", [("--openai-port", 0)])
    words = ["--openai-frontend", str(prepared), "--openai-port", str(port)]
    words += ["--openai-key-file", str(tmp_path / "key"), "--openai-flag", "default-max-tokens=64"]
    with serving(repository(), rootfs, driver(), *words) as server:
        assert server.post("/v2/models/ensemble/generate", {"text_input": "x"})[0] == 200
        assert ask(port, "/health/ready")[0] == 200
        for wrong in (None, "sk-wrong", key + "x"):
            assert ask(port, "/v1/chat/completions", CHAT, wrong)[0] == 401
            assert ask(port, "/v1/models", key=wrong)[0] == 401
        status, answer = ask(port, "/v1/chat/completions", CHAT, key)
        assert status == 200 and answer["choices"][0]["message"]["content"] == "stand-in: Once"
        assert "ensemble" in [m["id"] for m in ask(port, "/v1/models", key=key)[1]["data"]]
        assert server.end() == 0
    said = "".join(server.lines)
    assert f"http://127.0.0.1:{port}/v1" in said and key not in said


@pytest.fixture
def in_image(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
    tmp_path: Path,
) -> list[str]:
    """The command where the image is the root, as in the NixOS module's units; its key is a credential."""
    shutil.copytree(prepared, tmp_path / "frontend")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/openai-key").write_text("sk-0123456789abcdefghij\n")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    words = as_root(repository(), rootfs, driver(count=1), tmp_path, **credentials)
    return [*words, "--openai-frontend", str(tmp_path / "frontend"), "--exit-timeout", "20"]


@pytest.mark.slow
def test_it_serves_where_the_image_is_the_root(in_image: list[str]) -> None:
    key = "sk-0123456789abcdefghij"
    [port] = reserve("127.0.0.1", [("--openai-port", 0)])
    words = ["--openai-port", str(port), "--openai-key-file", "openai-key"]
    with started([*in_image, *words]) as server:
        assert server.post("/v2/models/ensemble/generate", {"text_input": "x"})[0] == 200
        assert ask(port, "/v1/chat/completions", CHAT)[0] == 401
        status, answer = ask(port, "/v1/chat/completions", CHAT, key)
        assert status == 200 and answer["choices"][0]["message"]["content"] == "stand-in: Once"
        # bubblewrap would take it along; systemd signals the command itself.
        [served] = [
            pid
            for pid in descendants(server.process.pid)
            if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and b"bwrap" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(served, signal.SIGTERM)
        assert server.process.wait(300) == 0, "".join(server.lines)
    said = "".join(server.lines)
    assert f"http://127.0.0.1:{port}/v1" in said and key not in said


@pytest.mark.slow
def test_a_free_port_where_the_image_is_the_root(in_image: list[str]) -> None:
    """A trial of the NixOS module (nix/nixos/trial.nix)."""
    with started([*in_image, "--openai-port", "0"]) as server:
        [port] = re.findall(r"OpenAI's interface: http://127\.0\.0\.1:(\d+)/v1", "".join(server.lines))
        assert ask(int(port), "/v1/chat/completions", CHAT)[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--openai-key-file", "another"], "openai-key-file"),
        (["--host", "0.0.0.0"], "share one address"),
        (["--triton-flag", "http-thread-count=2"], "no option of tritonserver"),
        (["--tritonserver", "/opt/../opt/elsewhere"], "bin/tritonserver is missing"),
    ],
)
def test_what_it_cannot_do_is_refused_where_the_image_is_the_root(
    in_image: list[str], more: list[str], said: str
) -> None:
    done = run([*in_image, *more, "--check"])
    assert done.returncode in (EXIT_USAGE, EXIT_MACHINE) and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_outside_of_an_image_it_is_refused(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    prepared: Path,
) -> None:
    words = [sys.executable, "-m", "enginix", "serve", str(repository()), "--openai-frontend", str(prepared)]
    words += ["--tritonserver", str(rootfs / "opt/tritonserver"), "--model-runtime", RUNTIME.id, "--dry-run"]
    done = run(words)
    assert done.returncode == EXIT_USAGE and "is not in that of trtllm-1.2.1" in done.stderr
    assert "--rootfs" in done.stderr


@pytest.mark.slow
def test_kind_reference_has_the_gateway(
    served_repository: Path, tritonserver: TritonServer, tmp_path: Path
) -> None:
    words = ["--tritonserver", str(tritonserver.directory), "--openai-frontend", str(tmp_path), "--dry-run"]
    done = run([sys.executable, "-m", "enginix", "serve", str(served_repository), *words])
    assert done.returncode == EXIT_USAGE and "kind reference" in done.stderr and "gateway" in done.stderr


@pytest.mark.parametrize(
    ("directory", "runtime"),
    [
        # Its Python is not on this machine.
        ("/opt/tritonserver", "trtllm-1.2.1"),
        ("/usr", "trtllm-1.1.0"),
        ("/opt/tritonserver", "trtllm-1.3.0rc26"),
        ("/opt/tritonserver", "reference"),
    ],
)
def test_this_root_is_no_image(directory: str, runtime: str) -> None:
    with pytest.raises(UsageError, match="part of a runtime's image"):
        around(TritonServer(Path(directory), runtime))


def test_a_key_s_file_is_a_path_or_a_credential(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(image, RUNTIME, tmp_path / "out")

    def key(file: str) -> str | None:
        return find(tmp_path / "out", RUNTIME, Path("/t"), 9000, (), Path(file)).key

    (tmp_path / "key").write_text("a-key-of-a-credential\n")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert key(str(tmp_path / "key")) == "a-key-of-a-credential"
    with pytest.raises(UsageError, match="systemd credential"):
        key("key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert key("key") == "a-key-of-a-credential"
    with pytest.raises(UsageError, match="--openai-key-file"):
        key("none")


@pytest.mark.slow
def test_what_it_cannot_do_is_refused_before_it_starts(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
    tmp_path: Path,
) -> None:
    models, gpu = repository(), driver()
    (tmp_path / "short").write_text("short")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for more, status, said in (
            (["--no-grpc"], EXIT_USAGE, "HTTP and gRPC together"),
            (["--host", "0.0.0.0"], EXIT_USAGE, "share one address"),
            (["--triton-flag", "http-thread-count=2"], EXIT_USAGE, "no option of tritonserver"),
            (["--openai-flag", "default-max-token=2"], EXIT_USAGE, "did you mean default-max-tokens"),
            (["--openai-key-file", str(tmp_path / "short")], EXIT_USAGE, "16 to 128"),
            (["--openai-frontend", str(tmp_path)], EXIT_MACHINE, "main.py is missing"),
            (["--openai-port", port], EXIT_MACHINE, f"port {port} is in use"),
        ):
            words = ["--openai-frontend", str(prepared), "--http-port", "0", "--grpc-port", "0", *more]
            done = run(command(models, rootfs, gpu, *words))
            assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    dry = run(command(models, rootfs, gpu, "--openai-frontend", str(prepared), "--dry-run"))
    assert "--enable-kserve-frontends" in dry.stdout and "tritonserver --id" not in dry.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks", "said"), [("llmapi", 1, "streaming"), ("tensorrt", 2, "one rank")])
def test_a_kind_or_ranks_that_it_does_not_fit_are_refused(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
    kind: str,
    ranks: int,
    said: str,
) -> None:
    done = run(
        command(repository(ranks, kind), rootfs, driver(), "--openai-frontend", str(prepared), "--dry-run")
    )
    assert done.returncode == EXIT_USAGE and said in done.stderr and "mkServe" in done.stderr


@pytest.mark.slow
def test_a_start_that_fails_says_why(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
    tmp_path: Path,
) -> None:
    unbound = tmp_path / "unbound"
    shutil.copytree(prepared, unbound)
    (unbound / "site/tritonfrontend/__init__.py").write_text("raise ImportError('no libtritonserver.so')\n")
    models = repository()
    ports = ["--http-port", "0", "--grpc-port", "0", "--openai-port", "0"]
    done = run(command(models, rootfs, driver(), "--openai-frontend", str(unbound), *ports))
    assert done.returncode != 0 and "no libtritonserver.so" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]
    assert run(["pgrep", "-f", str(unbound / "openai_frontend")]).stdout == ""


@pytest.mark.slow
def test_a_killed_command_leaves_no_frontend(
    repository: Callable[..., Path],  # noqa: F811
    rootfs: Path,  # noqa: F811
    driver: Callable[..., Path],  # noqa: F811
    prepared: Path,
) -> None:
    [port] = reserve("127.0.0.1", [("--openai-port", 0)])
    words = ["--openai-frontend", str(prepared), "--openai-port", str(port)]
    with serving(repository(), rootfs, driver(), *words) as server:
        assert ask(port, "/v1/chat/completions", CHAT)[0] == 200
        server.process.kill()
        deadline = time.monotonic() + 300
        while run(["pgrep", "-f", f"openai-port {port}"]).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)
