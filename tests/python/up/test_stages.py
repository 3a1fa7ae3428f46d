"""Which stages a request has, and that a directory is found again by the same request alone."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from enginix import optional_libraries, ports
from enginix.cli import main
from enginix.cli.command_table import COMMANDS
from enginix.errors import MachineError, UsageError
from enginix.gateway.spec import read_gateway_spec
from enginix.hub.lock import read_lock
from enginix.up import endpoint, session, stages
from enginix.up.session import RunLog, StageFailed, StageRecord, run_stages
from enginix.up.stages import Stage, UpRequest, format_nix, name_model, plan_server, plan_stages
from environments import environment

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "tests" / "models" / "tiny-qwen3.lock.json"
MODEL = ROOT / "tests" / "models" / "tiny-qwen3"


@pytest.fixture
def request_of_lock() -> UpRequest:
    return UpRequest("tiny-qwen3", LOCK, read_lock(LOCK))


def test_the_stages_of_each_request(request_of_lock: UpRequest, tmp_path: Path) -> None:
    def names(request: UpRequest) -> list[str]:
        return [stage.name for stage in plan_stages(request, tmp_path)]

    assert names(request_of_lock) == ["fetch", "convert", "build", "triton-repo"]
    assert names(replace(request_of_lock, kind="llmapi")) == ["fetch", "build"]
    quantized = replace(request_of_lock, format="fp8")
    assert names(quantized) == ["fetch", "calibrate", "quantize", "convert", "build", "triton-repo"]
    assert names(replace(quantized, lock=None, source=MODEL, calibration=MODEL))[0] == "quantize"
    build = plan_stages(quantized, tmp_path)[-2].words
    # The quantized engine is compared with the model before quantization.
    assert "--reference" in build and "tiny-qwen3-fp8" in build
    with pytest.raises(UsageError, match="edgellm-export"):
        plan_stages(replace(request_of_lock, kind="edgellm"), tmp_path)


def test_what_is_built_on_a_gpu_is_served_on_it(request_of_lock: UpRequest, tmp_path: Path) -> None:
    def words(request: UpRequest) -> list[tuple[str, ...]]:
        return [stage.words[-4:-2] for stage in plan_stages(request, tmp_path)[-2:]]

    on_gpu = replace(request_of_lock, build_options=("--device", "cuda:1"))
    assert words(on_gpu) == [("--device", "cuda:1")] * 2
    assert "--device" not in plan_stages(request_of_lock, tmp_path)[-1].words


def test_a_device_that_is_none_is_told_before_any_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINIX_TRITONSERVER", str(environment("tritonserver")))
    monkeypatch.setattr("enginix.gateway.launch.require_litellm", lambda python: None)
    assert main(["up", str(MODEL), "--device", "cud"]) == 2
    assert "cud: no such device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_another_request_has_other_directories(request_of_lock: UpRequest, tmp_path: Path) -> None:
    def outputs(request: UpRequest) -> list[Path]:
        return [stage.output for stage in plan_stages(request, tmp_path)]

    first = outputs(request_of_lock)
    assert outputs(request_of_lock) == first
    # What does not go into a stage does not name it.
    ungated = outputs(replace(request_of_lock, gates=False))
    assert ungated[:2] == first[:2] and not set(ungated[2:]) & set(first[2:])
    copied = tmp_path / "model"
    shutil.copytree(MODEL, copied)
    of_directory = replace(request_of_lock, lock=None, source=copied)
    before = outputs(of_directory)
    os.utime(copied / "config.json", ns=(1, 1))
    assert not set(before) & set(outputs(of_directory))


def test_names_of_models() -> None:
    sources = ("Qwen/Qwen3-0.6B", "models/Tiny/", "qwen3-0.6b.lock.json", "x.json")
    assert [name_model(s) for s in sources] == ["qwen3-0.6b", "tiny", "qwen3-0.6b", "x"]


def test_what_is_there_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    log = RunLog(cache / "stages.jsonl")
    stage = Stage("convert", ("convert", str(MODEL), "-o", str(cache / "out")), cache / "out", 10**6)
    assert log.estimate_seconds(stage) is None
    [first] = run_stages([stage], log, as_json=True)
    assert not first.cached and first.seconds > 0 and first.peak_bytes > 1 << 20
    [second] = run_stages([stage], log, as_json=True)
    assert second.cached and "here already" in capfd.readouterr().err
    [line] = log.file.read_text().splitlines()
    assert json.loads(line)["seconds"] == round(first.seconds, 3)
    # The next model's time comes from this one's speed.
    larger = replace(stage, input_bytes=3 * 10**6)
    assert log.estimate_seconds(larger) == pytest.approx(3 * first.seconds, rel=0.01)


def test_a_stage_that_fails_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    words = ("convert", str(tmp_path / "model"), "-o", str(tmp_path / "out"))
    stage = Stage("convert", words, tmp_path / "out")
    with pytest.raises(StageFailed) as failed:
        run_stages([stage], RunLog(tmp_path / "log"), as_json=False)
    assert failed.value.exit_code == 3 and failed.value.as_json()["exitCode"] == 3
    assert "config.json" in capfd.readouterr().err


def test_stages_leave_the_next_step_to_up(tmp_path: Path) -> None:
    """At a terminal a stage alone names the next command; below enginix up that would mislead."""
    script = (
        "import sys; from pathlib import Path; from enginix.up import session, stages\n"
        "[model, out] = map(Path, sys.argv[1:])\n"
        "stage = stages.Stage('convert', ('convert', str(model), '-o', str(out)), out)\n"
        "session.run_stages([stage], session.RunLog(out.parent / 'log'), as_json=False)\n"
    )
    shown = []
    for number, words in enumerate(
        (["-c", script, str(MODEL)], ["-m", "enginix", "convert", str(MODEL), "-o"])
    ):
        leader, follower = pty.openpty()
        subprocess.run(
            [sys.executable, *words, str(tmp_path / str(number))],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
            stdout=follower,
            stderr=follower,
            check=True,
        )
        os.close(follower)
        shown.append(os.read(leader, 65536).decode())
        os.close(leader)
    assert "convert:" in shown[0] and "next:" not in shown[0]
    assert "next:" in shown[1]


def test_an_interrupted_stage_says_how_to_go_on(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading; from pathlib import Path\n"
        "from enginix.up import session, stages\n"
        "out = Path(sys.argv[2])\n"
        "stage = stages.Stage('build', ('calibrate', sys.argv[1], '-o', str(out)), out)\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "session.run_stages([stage], session.RunLog(out.parent / 'log'), as_json=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(MODEL), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InterruptedWork: interrupted in stage build" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_size_of_a_directory_counts(request_of_lock: UpRequest, tmp_path: Path) -> None:
    of_directory = replace(request_of_lock, lock=None, source=MODEL)
    size = sum(path.stat().st_size for path in MODEL.iterdir())
    assert {stage.input_bytes for stage in plan_stages(of_directory, tmp_path)} == {size}


def test_a_damaged_log_is_no_reason_to_fail(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.file.write_text('not json\n[]\n{"stage": "fetch", "bytesPerSecond": "many"}\n')
    assert log.estimate_seconds(Stage("fetch", (), tmp_path, 5)) is None
    log.append(StageRecord("fetch", "x", cached=False, seconds=2, input_bytes=10))
    assert log.estimate_seconds(Stage("fetch", (), tmp_path, 20)) == 4


def test_commands_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["up", str(LOCK), "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [row["here"] for row in rows] == [False] * 4 and not list(tmp_path.iterdir())
    assert main(["up", str(LOCK), "--format", "fp8", "--print-nix"]) == 0
    assert capsys.readouterr().out.rstrip() == format_nix(
        UpRequest("tiny-qwen3", LOCK, read_lock(LOCK), format="fp8"), LOCK.name
    )
    assert main(["up", str(tmp_path), "--dry-run"]) == 3
    assert main(["up", str(LOCK), "--exit-after-ask"]) == 2


def test_the_nix_expression_has_every_option(request_of_lock: UpRequest) -> None:
    request = replace(
        request_of_lock,
        kind="llmapi",
        format="fp8",
        calibration=Path("/data/own"),
        build_options=("--target", "h200", "--runtime", "trtllm-1.2.1"),
        gates=False,
    )
    text = format_nix(request, LOCK.name)
    for argument in ('target = "h200";', 'runtime = "trtllm-1.2.1";', "gates = { };", "/data/own"):
        assert argument in text
    described = replace(request_of_lock, kind="llmapi", build_options=("--runtime", "/a/own.json"))
    assert "runtime" in (plain := format_nix(described, LOCK.name)) and "/a/own.json" in plain
    assert "gates" not in plain and "target" not in plain


@pytest.mark.parametrize("kind", ["reference", "llmapi", "tensorrt"])
def test_the_server_behind_the_gateway(request_of_lock: UpRequest, kind: str, tmp_path: Path) -> None:
    """As mkGateway has it: Triton for kind reference, trtllm-serve for the others; --print-nix as well."""
    request = replace(request_of_lock, kind=kind, serve_options=("--rootfs", "/image"))
    plan = plan_server(request, tmp_path, 8123)
    is_triton = kind == "reference"
    assert ("mkTritonServer" in format_nix(request, LOCK.name).split("let")[1]) is is_triton
    assert plan.words[0] == ("serve" if is_triton else "runner")
    assert (plan.backend["kind"], "triton-repo" in [s.name for s in plan_stages(request, tmp_path)]) == (
        ("triton", True) if is_triton else ("openai", False)
    )
    command, *words = plan.words
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"enginix.cli.{COMMANDS[command][0]}").add_arguments(parser)
    assert str(parser.parse_args(words).rootfs) == "/image"
    (tmp_path / "gateway.json").write_text(
        json.dumps({"version": 1, "name": "n", "models": {"n": [plan.backend]}})
    )
    assert read_gateway_spec(tmp_path / "gateway.json").models


def test_all_that_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINIX_GATEWAY_PYTHON", sys.executable)
    monkeypatch.delenv("ENGINIX_TRITONSERVER", raising=False)
    monkeypatch.setattr(optional_libraries, "find_spec", lambda name: None if name == "modelopt" else name)
    assert main(["up", str(MODEL), "--format", "fp8"]) == 5
    error = capsys.readouterr().err
    for part in ("extra 'gateway'", "no tritonserver is named", "modelopt is not installed"):
        assert part in error
    # The flake has one command that brings all of it.
    is_from_nix = optional_libraries.is_in_nix_store(sys.executable)
    assert ("#up -- …" in error) if is_from_nix else error.count("\n       ") >= 2
    assert not list(tmp_path.iterdir())


def test_a_missing_gateway_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINIX_GATEWAY_PYTHON", sys.executable)
    assert main(["up", str(MODEL)]) == 5
    assert "gateway" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_taken_port_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("enginix.cli.serving.up._require_software", lambda args: Path(sys.executable))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["up", str(MODEL), "--port", str(taken.getsockname()[1])]) == 5
    assert "is in use" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(["up", str(MODEL), "--port", "99999"]) == 2
    assert "99999 is not a port" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ask", ""], "--ask: is empty"),
        (["--format", "fp9"], "unknown format 'fp9'"),
        (["--format", "mixed"], "budget of format mixed"),
        (["--kind", "tensorrt"], "--target is needed"),
        (["--kind", "llmapi", "--runtime", "trtllm-1.2.1", "--target", "h2000"], "did you mean h200"),
        (["--kind", "llmapi"], "--runtime is needed"),
        (["--kind", "llmapi", "--runtime", "trtllm-9"], "unknown runtime 'trtllm-9'"),
        (["--format", "fp8", "--calibration", "/nonexistent"], "--calibration: /nonexistent"),
        (["--rootfs", "/nonexistent"], "--rootfs: /nonexistent"),
        (["--target", "h200"], "--target: not an option of kind reference"),
    ],
)
def test_options_are_checked_before_any_stage(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", str(LOCK), *words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_tritonserver_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINIX_TRITONSERVER", str(tmp_path / "none"))
    monkeypatch.setattr("enginix.gateway.launch.require_litellm", lambda python: None)
    assert main(["up", str(MODEL)]) == 5
    errors = capsys.readouterr().err
    assert str(tmp_path / "none") in errors and "ended with status" not in errors
    assert not list(tmp_path.iterdir())


def test_a_second_run_waits_for_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both begin the same stage; one makes it, and both go on."""
    from concurrent.futures import ThreadPoolExecutor

    from enginix.work_directory import is_being_written, new_directory

    output = tmp_path / "out"
    stage = Stage("convert", ("convert", str(MODEL), "-o", str(output)), output)
    with ThreadPoolExecutor() as pool:
        with new_directory(output) as partial:
            (partial / "file").write_text("")
            assert is_being_written(output)
            second = pool.submit(run_stages, [stage], RunLog(tmp_path / "log"), as_json=True)
            time.sleep(0.3)
            assert not second.done()
        assert [record.cached for record in second.result(60)] == [True]
    assert not is_being_written(output)
    assert "another enginix makes it; waiting for it" in capsys.readouterr().err


class _Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_a_server_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    """Also where another one answers at its address."""
    log = tmp_path / "log"
    with HTTPServer(("127.0.0.1", 0), _Answering) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with session.run_server("server", ["serve", str(tmp_path / "none")], log) as server:
            with pytest.raises(Exception, match="ended with status") as failed:
                session.await_url(f"http://127.0.0.1:{other.server_port}/", [server], 60)
            assert "none" in str(failed.value)
        other.shutdown()


def test_a_slow_start_names_the_option(tmp_path: Path) -> None:
    with (
        session.run_server("server", ["chat", "--help"], tmp_path / "log") as server,
        pytest.raises(MachineError, match="raise --start-timeout"),
    ):
        session.await_url("http://127.0.0.1:9/", [server], 0)


def test_a_port_that_is_bound_since_is_refused() -> None:
    """Two sockets may bind one port by SO_REUSEADDR; one of them listens."""
    with ports.open_listener("127.0.0.1", 0, "--port") as first:
        port = first.getsockname()[1]
        assert ports.is_port_of([os.getpid()], port) and not ports.is_port_of([1 << 30], port)
        with (
            pytest.raises(MachineError, match=f"port {port} is in use"),
            ports.open_listener("127.0.0.1", port, "--port"),
        ):
            pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace stages and servers; an answer is there at once."""
    running = endpoint.RunningEndpoint("http://127.0.0.1:9/v1", (), 0.0, 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("enginix.cli.serving.up._require_software", lambda args: Path(sys.executable))
    monkeypatch.setattr(session, "run_stages", lambda *_, **__: [])
    monkeypatch.setattr(endpoint, "run_endpoint", lambda *_: contextlib.nullcontext(running))
    monkeypatch.setattr("enginix.up.chat.complete_text", lambda *_: " is free.")
    return tmp_path


@pytest.mark.parametrize("words", [[], ["--quiet"], ["--json"]])
def test_the_answer_is_a_result(started: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--port", "0", "--ask", "The license", "--exit-after-ask"]
    assert main(["up", str(MODEL), *asked, *words]) == 0
    printed = capsys.readouterr().out
    if "--json" in words:
        assert json.loads(printed)["answer"] == {"text": " is free."}
    else:
        assert printed.endswith("\nThe license is free.\n")


def test_sigterm_while_servers_start(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "run_endpoint", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["up", str(MODEL), "--port", "0"]) == 143


def test_a_cache_that_cannot_be_written(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", __file__)
    assert main(["up", str(MODEL), "--port", "0"]) == 5
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_a_stage_that_another_run_makes_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = ["convert", str(MODEL), "-o", str(tmp_path)]
    assert main(words) == 2 and "output exists already" in capsys.readouterr().err
    monkeypatch.setenv("ENGINIX_STAGE", "convert")
    assert main(words) == 2 and not capsys.readouterr().err


def test_the_working_directory_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('a module of the working directory')")
    monkeypatch.chdir(tmp_path)
    stage = Stage("convert", ("convert", str(MODEL), "-o", str(tmp_path / "out")), tmp_path / "out")
    assert run_stages([stage], RunLog(tmp_path / "log"), as_json=True)


@pytest.mark.slow
def test_from_a_name_to_an_answer(tmp_path: Path) -> None:
    """The whole command as a user types it; a real tritonserver, a real LiteLLM, a hub on loopback."""
    from hub import Hub

    with Hub({"acme/Tiny-Qwen3": MODEL}) as hub:
        variables = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "XDG_CACHE_HOME": str(tmp_path / "cäche and more"),
            "PYTHONPATH": str(ROOT / "python"),
            "ENGINIX_GATEWAY_PYTHON": str(environment("gateway") / "bin" / "python3"),
            "ENGINIX_TRITONSERVER": str(environment("tritonserver")),
        }
        words = [sys.executable, "-m", "enginix", "up", "acme/Tiny-Qwen3", "--port", "0", "--json"]

        def run_until_ready() -> tuple[dict[str, object], int]:
            with (tmp_path / "err").open("w") as err:
                up = subprocess.Popen(
                    words, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True
                )
            assert up.stdout is not None
            line = up.stdout.readline()
            assert line, (tmp_path / "err").read_text()
            ready = json.loads(line)
            body = json.dumps({"model": ready["model"], "prompt": "Once", "max_tokens": 4}).encode()
            asked = urllib.request.Request(
                f"{ready['url']}/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=600) as response:
                assert json.loads(response.read())["choices"][0]["text"]
            up.send_signal(signal.SIGTERM)
            return ready, up.wait(300)

        first, status = run_until_ready()
        assert status == 0 and not any(row["cached"] for row in first["stages"])  # type: ignore[attr-defined]
        assert read_lock(tmp_path / "tiny-qwen3.lock.json").repo == "acme/Tiny-Qwen3"
        requests = len(hub.requests)
        second, status = run_until_ready()
        assert status == 0 and all(row["cached"] for row in second["stages"])  # type: ignore[attr-defined]
        assert len(hub.requests) == requests
        deadline = time.monotonic() + 300
        while _is_port_open(str(second["url"])) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _is_port_open(str(second["url"]))


def _is_port_open(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/models", timeout=2).close()
    except OSError:
        return False
    return True


def test_the_cache_is_below_the_users_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert stages.locate_cache() == Path("/somewhere/enginix/up")
