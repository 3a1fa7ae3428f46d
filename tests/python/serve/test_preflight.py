"""Checks before a server is started; no server runs here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from enginix import manifest, ports
from enginix.errors import MachineError, ManifestError, RepositoryError, UsageError
from enginix.manifest import Manifest
from enginix.notify import notify_systemd
from enginix.runtime import table
from enginix.serve import launch, preflight, pytriton_wheel, tritonserver
from enginix.serve.readiness import GoldenAnswer, read_golden
from enginix.serve.supervisor import explain_exit


def test_free_ports_are_three_different_ones() -> None:
    found = ports.reserve_ports("127.0.0.1", [("a", 0), ("b", 0), ("c", 0)])
    assert len(set(found)) == 3
    assert all(found)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named_with_its_holder(address: str) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            ports.reserve_ports("127.0.0.1", [("--http-port", port)])
    comm = Path("/proc/self/comm").read_text().strip()
    assert f"--http-port: port {port} is in use by {comm} (process {os.getpid()})" in str(caught.value)
    assert "another port with --http-port" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("localhost", "not an IP address"),
        ("fe80::1%eth0", "names a zone"),
        ("::ffff:127.0.0.1", "fix: 127.0.0.1"),
    ],
)
def test_addresses_that_triton_cannot_bind(host: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        launch.check_host(host)


def test_where_a_server_is_reached_and_by_whom() -> None:
    found = {h: (ports.reachable_address(h), ports.is_loopback(h)) for h in ("0.0.0.0", "::", "0::0", "::1")}
    assert found == {
        "0.0.0.0": ("127.0.0.1", False),
        "::": ("::1", False),
        "0::0": ("::1", False),
        "::1": ("::1", True),
    }
    assert ports.is_loopback("127.0.0.2") and not ports.is_loopback("192.0.2.1")


def test_a_port_that_only_lingers_is_free() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton's do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = listener.accept()
    accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    client.close()
    assert ports.reserve_ports("127.0.0.1", [("http", port)]) == [port]


@pytest.mark.parametrize("given", [[("a", 70000)], [("a", -1)], [("a", 9321), ("b", 9321)]])
def test_impossible_ports(given: list[tuple[str, int]]) -> None:
    with pytest.raises(UsageError):
        ports.reserve_ports("127.0.0.1", given)


def test_addresses_only() -> None:
    with pytest.raises(UsageError, match="'localhost' is not an IP address"):
        ports.reserve_ports("localhost", [("http", 0)])
    with pytest.raises(MachineError, match="cannot bind"):
        ports.reserve_ports("203.0.113.7", [("http", 0)])


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """The layout of an installation, its programs empty."""
    for part in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        f"backends/python/{tritonserver.STUB}",
    ):
        path = tmp_path / "triton" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        path.chmod(0o755)
    return tmp_path / "triton"


def test_an_installation_is_found(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tritonserver.find_tritonserver(installation).runtime == "reference"
    monkeypatch.setenv("ENGINIX_TRITONSERVER", str(installation))
    assert tritonserver.find_tritonserver(None).directory == installation
    (installation / "runtime.json").write_text('{"name": "trtllm-1.2.1"}')
    assert tritonserver.find_tritonserver(installation).runtime == "trtllm-1.2.1"
    assert tritonserver.find_tritonserver(installation, "reference").runtime == "reference"
    (installation / "runtime.json").write_text('{"name": "trtllm-9"}')
    with pytest.raises(MachineError, match="unknown runtime 'trtllm-9'"):
        tritonserver.find_tritonserver(installation)


def test_an_incomplete_installation(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINIX_TRITONSERVER", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(installation / "data"))
    monkeypatch.setattr(pytriton_wheel, "find_installed", lambda: None)
    with pytest.raises(MachineError, match="no tritonserver is named"):
        tritonserver.find_tritonserver(None)
    (installation / "backends" / "python" / tritonserver.STUB).chmod(0o644)
    with pytest.raises(MachineError, match="triton_python_backend_stub is missing or not executable"):
        tritonserver.find_tritonserver(installation)


@pytest.mark.parametrize(
    ("runtime", "described", "expected"),
    [
        ("reference", {"kind": "reference", "runtime": {"id": "reference"}}, None),
        ("reference", {"kind": "reference"}, None),
        (
            "reference",
            {"kind": "tensorrt", "runtime": {"id": "trtllm-1.2.1"}},
            "the engine is for runtime trtllm-1.2.1, the server's runtime is reference",
        ),
        (
            "trtllm-1.1.0",
            {"kind": "tensorrt", "runtime": {"id": "trtllm-1.2.1"}},
            "the engine is for runtime trtllm-1.2.1, the server's runtime is trtllm-1.1.0",
        ),
        (
            "trtllm-1.1.0",
            {"kind": "reference"},
            "the engine is of kind reference, the server's runtime trtllm-1.1.0 runs",
        ),
        ("trtllm-9", {"kind": "reference"}, "'trtllm-9', which is unknown (known: "),
    ],
)
def test_engine_against_runtime(
    installation: Path, runtime: str, described: Any, expected: str | None
) -> None:
    found = tritonserver.find_refusal(
        Manifest(artefact="triton-repository", name="m", **described),
        tritonserver.TritonServer(installation, runtime),
    )
    assert found is None if expected is None else expected in str(found)


def test_a_described_runtime_is_found_by_the_repositorys_manifest(
    installation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's runtime that the table does not have is what the manifest says of it."""
    monkeypatch.setattr(table, "_warned", set())
    described = {
        "like": "trtllm-1.2.1",
        "image": "localhost:5000/triton:26.12",
        "versions": {"tensorrtLlm": "1.2.2", "tritonServer": "2.76.0"},
    }
    fields = {"id": "trtllm-1.2.2-unverified", "verified": False, **described}
    manifest = Manifest(artefact="triton-repository", name="m", kind="llmapi", runtime=fields)
    server = tritonserver.find_tritonserver(installation, "trtllm-1.2.2-unverified", fields)
    assert (server.runtime, server.version) == ("trtllm-1.2.2-unverified", "2.76.0")
    assert tritonserver.find_refusal(manifest, server) is None
    assert "not verified by enginix" in capsys.readouterr().err
    (tmp_path / "root" / "opt").mkdir(parents=True)
    installation.rename(tmp_path / "root" / "opt" / "tritonserver")
    inside = tritonserver.find_in_image(tmp_path / "root", fields)
    assert inside.runtime == server.runtime and tritonserver.find_refusal(manifest, inside) is None
    assert inside.find_runtime("llmapi").environment["PATH"].startswith("/opt/venv-tritonserver")
    other = Manifest(artefact="triton-repository", name="m", kind="llmapi", runtime={"id": "trtllm-1.2.1"})
    assert "the engine is for runtime trtllm-1.2.1" in str(tritonserver.find_refusal(other, inside))
    fields["like"] = "trtllm-1.4.0rc1"  # as a tampered manifest has it
    with pytest.raises(UsageError, match=r"no Triton"):
        tritonserver.find_in_image(tmp_path / "root", fields)


def test_a_repository_is_read_and_compared(
    served_repository: Path, installation: Path, tmp_path: Path, served_engine: Path
) -> None:
    found = preflight.check_repository(served_repository, tritonserver.find_tritonserver(installation))
    assert (found.manifest.name, found.instances) == ("tiny-qwen3", 2)
    with pytest.raises(ManifestError, match=r"for runtime reference.*is trtllm-1\.2\.1") as caught:
        preflight.check_repository(
            served_repository, tritonserver.find_tritonserver(installation, "trtllm-1.2.1")
        )
    assert str(served_repository) in str(caught.value)
    assert str(installation) in str(caught.value)
    with pytest.raises(ManifestError, match="is an engine, not a triton-repository"):
        preflight.check_repository(served_engine, tritonserver.find_tritonserver(installation))
    broken = tmp_path / "broken"
    shutil.copytree(served_repository, broken)
    (broken / "stray").mkdir()
    with pytest.raises(RepositoryError, match="stray: directory without"):
        preflight.check_repository(broken, tritonserver.find_tritonserver(installation))


def python(directory: Path, minor: int, packages: dict[str, str]) -> Path:
    """A stand-in for an interpreter: answers the preflight's questions, runs nothing."""
    path = directory / "python3"
    answer = json.dumps([minor, list(packages), packages.get("numpy", "")])
    # Whether its distribution alone installs into it, and whether it has pip.
    managed = "case $2 in *EXTERNALLY-MANAGED*) echo '[true, true]'; exit;; esac"
    path.write_text(f"#!/bin/sh\n{managed}\necho '{answer}'\n")
    path.chmod(0o755)
    return path


COMPLETE = {"numpy": "1.26.4", "tokenizers": "0.22", "torch": "2.13"}
OLD_STUB = b"libpython3.11.so.1.0 numpy.core.multiarray"
NEW_STUB = b"libpython3.11.so.1.0 numpy.core.multiarray numpy._core.multiarray"


@pytest.mark.parametrize(
    ("stub", "minor", "packages", "expected"),
    [
        (OLD_STUB, 11, COMPLETE, None),
        (NEW_STUB, 11, {**COMPLETE, "numpy": "2.4.6"}, None),
        (OLD_STUB, 12, COMPLETE, "Python 3.12, but this Triton's stub is for 3.11"),
        (
            OLD_STUB,
            11,
            {**COMPLETE, "numpy": "2.4.6"},
            "NumPy 2.4.6, but this Triton's Python stub reads arrays of NumPy 1",
        ),
        (OLD_STUB, 11, {"numpy": "1.26.4"}, "lacks tokenizers, torch"),
    ],
)
def test_the_python_environment_suits_the_stub(
    installation: Path,
    tmp_path: Path,
    stub: bytes,
    minor: int,
    packages: dict[str, str],
    expected: str | None,
) -> None:
    (installation / "backends" / "python" / tritonserver.STUB).write_bytes(stub)
    interpreter, server = python(tmp_path, minor, packages), tritonserver.find_tritonserver(installation)
    if expected is None:
        tritonserver.check_python(interpreter, server)
        return
    with pytest.raises(MachineError) as caught:
        tritonserver.check_python(interpreter, server)
    assert expected in str(caught.value)
    if "lacks" in expected:
        assert f"{interpreter} -m venv enginix-venv" in str(caught.value)


def test_an_interpreter_that_does_not_run(installation: Path, tmp_path: Path) -> None:
    server = tritonserver.find_tritonserver(installation)
    with pytest.raises(UsageError, match="not an executable named python3"):
        tritonserver.check_python(Path("/bin/true"), server)
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho no libc >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(MachineError, match="does not run: no libc"):
        tritonserver.check_python(broken, server)


def test_shared_memory(tmp_path: Path) -> None:
    preflight.check_shared_memory(3)
    with pytest.raises(MachineError, match="needed for 100000000000 Python model instances"):
        preflight.check_shared_memory(10**11, tmp_path)
    with pytest.raises(MachineError, match="not writable"):
        preflight.check_shared_memory(1, tmp_path / "missing")


def test_the_command_is_on_loopback_with_nothing_left_to_chance(installation: Path, tmp_path: Path) -> None:
    plan = launch.LaunchSpec(
        tritonserver.find_tritonserver(installation),
        tmp_path,
        Path("/env/bin/python3"),
        launch.Endpoints("127.0.0.1", 1, 2, 3),
    )
    words = plan.command("prefix-", plan.repository)
    for flag in ("http", "grpc", "metrics"):
        assert f"--{flag}-address=127.0.0.1" in words
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(words)
    assert {"--model-control-mode=none", "--disable-auto-complete-config"} <= set(words)
    assert "--backend-config=python,shm-region-prefix-name=prefix-r0-" in words
    environment = plan.environment(tmp_path)
    assert environment["PATH"].split(":")[0] == "/env/bin"
    assert environment["HOME"] == str(tmp_path)


def test_secrets_of_the_caller_do_not_reach_the_server(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    plan = launch.LaunchSpec(
        tritonserver.find_tritonserver(installation),
        tmp_path,
        Path("/env/bin/python3"),
        launch.Endpoints("::1", 1, 2, 3),
    )
    assert "hf_secret" not in json.dumps(launch.describe_launch(plan))


# As Triton writes it: tracebacks on one line, their line ends as \n.
LOADING = [
    'I1120 13:20:47.470906 8409 model_lifecycle.cc:472] "loading: tensorrt_llm:1"',
    'E1120 13:20:48.470906 8409 backend_model.cc:692] "ERROR: Failed to create instance: gone"',
    "E1120 13:20:48.470906 8409 model_lifecycle.cc:642] \"failed to load 'tensorrt_llm' version 1: "
    r'Internal: CheckpointError: gone\n\nAt:\n  /x/model.py(30): initialize\n"',
    "I1120 13:20:48.500000 8409 model_lifecycle.cc:777] \"failed to load 'tensorrt_llm'\"",
    "+--------------+---------+",
    "| Model        | Version |",
    "",
    "error: creating server: Internal - failed to load all models",
]


def test_a_failed_start_names_the_model_and_the_reason() -> None:
    error = explain_exit(LOADING, 1)
    assert str(error).startswith("tensorrt_llm: failed to load: CheckpointError: gone\n")
    assert "error: creating server" in str(error)
    assert "+---" not in str(error)


def test_a_failed_start_without_words() -> None:
    assert "signal 9: no output" in explain_exit([], -9).what
    assert (
        "Address already in use" in explain_exit(["error: creating server: Address already in use"], 1).what
    )


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, None),
        ({"golden": {"promptTokens": [1, 2], "tokens": [3]}}, GoldenAnswer((1, 2), (3,))),
        ({"golden": {"promptTokens": [1, -2], "tokens": [3]}}, None),
        ({"golden": {"promptTokens": [], "tokens": [3]}}, None),
        ({"golden": "x"}, None),
    ],
)
def test_golden_tokens_of_a_manifest(results: Any, expected: GoldenAnswer | None) -> None:
    assert read_golden(Manifest(artefact="triton-repository", name="m", results=results)) == expected


def test_the_repository_carries_the_engine_s_golden_tokens(
    served_repository: Path, served_engine: Path
) -> None:
    expected = manifest.read_manifest(served_engine).results["golden"]
    found = read_golden(manifest.read_manifest(served_repository))
    assert found is not None
    assert list(found.tokens) == expected["tokens"]


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify_systemd("READY=1")


def test_this_interpreter_is_understood(
    tritonserver: tritonserver.TritonServer, serving_python: Path
) -> None:
    from enginix.serve.tritonserver import check_python

    check_python(serving_python, tritonserver)
    assert sys.version_info[:2] >= (3, 10)


def test_gpus_are_the_only_ones_that_the_server_sees(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    gpus = launch.check_gpus("1,GPU-2f0c1b6e-6a5d-4d0e-9b7b-1f2e3d4c5b6a")
    server, endpoints = tritonserver.find_tritonserver(installation), launch.Endpoints("::1", 1, 2, 3)
    plan = launch.LaunchSpec(server, tmp_path, Path("/env/bin/python3"), endpoints, gpus=gpus)
    found = plan.environment(tmp_path)
    assert found["CUDA_VISIBLE_DEVICES"] == "1,GPU-2f0c1b6e-6a5d-4d0e-9b7b-1f2e3d4c5b6a"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert launch.check_gpus(None) == ()


@pytest.mark.parametrize("text", ["", "0,", "0 1", "0,0", "cuda:0", "-1", "GPU-", "0;rm"])
def test_what_is_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--gpus"):
        launch.check_gpus(text)
