"""What refuses to serve or to ask an engine: GPU, driver, library, PyTorch, files, options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginix import manifest
from enginix.cli import main
from enginix.compatibility import check
from enginix.compatibility.check import Mismatch
from enginix.errors import EnginixError, MachineError
from enginix.kinds.registry import find_start_module
from enginix.kinds.rtx_serving import start
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.machine.target import Machine, MachineGpu
from enginix.serve import preflight
from enginix.serve.tritonserver import TritonServer, find_refusal
from enginix.triton.config import read_pbtxt
from enginix.triton.options import RepositoryOptions
from enginix.up.stages import UpRequest, format_nix, plan_stages

TINY = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"


@pytest.fixture(scope="session")
def repository(made_once: Any, served: Path) -> Path:
    return made_once("rtx-repository", lambda out: build_triton_repository(served, out))


@pytest.fixture
def server(tmp_path: Path) -> TritonServer:
    return TritonServer(tmp_path, "reference")


def read_executor(repository: Path) -> dict[str, str]:
    config = read_pbtxt(repository / "tensorrt_llm/config.pbtxt")
    return {name: value.string_value for name, value in config.parameters.items()}


def test_a_repository_names_the_executor(repository: Path, served: Path, tiny: Path, tmp_path: Path) -> None:
    parameters = read_executor(repository)
    assert parameters["gpt_model_path"] == str(served / "engine")
    assert "interpreter_checkpoint" not in parameters and "device" not in parameters
    assert read_pbtxt(repository / "tensorrt_llm/config.pbtxt").max_batch_size == 8
    assert "rtx_executor" in (repository / "tensorrt_llm/1/model.py").read_text()
    out = tmp_path / "interpreted"
    build_triton_repository(served, out, RepositoryOptions(interpreter=tiny, max_batch_size=2))
    assert read_executor(out)["interpreter_checkpoint"] == str(tiny)
    described = manifest.read_manifest(out)
    assert described.options["interpreter"] is True and described.options["max_batch_size"] == 2
    # A path of this machine is no part of a manifest.
    assert str(tiny) not in (out / manifest.MANIFEST_FILE).read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--max-batch-size", "9"], "above the engine's 8"),
        (["--max-tokens-limit", "128"], "max_tokens_limit: 128 is above 127"),
        (["--device", "cuda"], "not supported by the kind rtx"),
        (["--preprocessing-instances", "2"], "not supported by the kind rtx"),
        (["--no-decoupled"], "options of NVIDIA's models"),
        (["--interpreter", str(TINY)], "another checkpoint"),
    ],
)
def test_repositories_are_refused(
    served: Path, tmp_path: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton-repo", str(served), "-o", str(tmp_path / "out"), *words]) != 0
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_kinds_have_no_interpreter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", str(TINY), "--interpreter", "--dry-run"]) != 0
    assert "kind reference has no interpreter" in capsys.readouterr().err


MIB = 1 << 20


def make_machine(sm: int, driver: str = "590.44.01", free: int = 8000) -> Machine:
    return Machine(driver, "13.0", (MachineGpu(0, "a GPU", "GPU-1", sm, 8192 * MIB, free * MIB),), "nvml")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (make_machine(90), r"sm: built for \[80, 86, 89, 120, 121\], here a GPU \(SM 90\)"),
        (make_machine(89, "570.86.10"), "driver: built for 580.65.06 or later, here 570.86.10"),
        (make_machine(89, free=1), "1.0 MB of GPU memory free|GPU memory free"),
        (None, "no NVIDIA driver"),
    ],
)
def test_machines_are_refused_at_the_start(
    repository: Path,
    server: TritonServer,
    machine: Machine | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probe(driver: Any) -> Machine:
        if machine is None:
            raise MachineError("no NVIDIA driver")
        return machine

    monkeypatch.setattr(preflight, "probe_machine", probe)
    with pytest.raises(EnginixError, match=reason):
        preflight.check_gpus(preflight.check_repository(repository, server), SimpleNamespace(), ())  # type: ignore[arg-type]


def test_a_machine_that_fits_is_taken_and_an_interpreter_asks_for_none(
    repository: Path,
    served: Path,
    tiny: Path,
    server: TritonServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "probe_machine", lambda driver: make_machine(120))
    checked = preflight.check_repository(repository, server)
    assert checked.engine == served
    assert preflight.check_gpus(checked, SimpleNamespace(), ("0",)) == []  # type: ignore[arg-type]
    build_triton_repository(served, tmp_path / "out", RepositoryOptions(interpreter=tiny))
    assert preflight.check_repository(tmp_path / "out", server).engine is None


def test_a_changed_plan_is_refused_at_the_start(served: Path, server: TritonServer, tmp_path: Path) -> None:
    shutil.copytree(served, tmp_path / "engine")
    build_triton_repository(tmp_path / "engine", tmp_path / "repository")
    path = tmp_path / "engine/engine/decoder.plan"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnginixError, match=r"decoder\.plan"):
        preflight.check_repository(tmp_path / "repository", server)


def test_a_server_of_an_image_is_refused(repository: Path, tmp_path: Path) -> None:
    described = manifest.read_manifest(repository)
    assert find_refusal(described, TritonServer(tmp_path, "reference")) is None
    refusal = find_refusal(described, TritonServer(tmp_path, "trtllm-1.2.1"))
    assert refusal == "kind rtx runs in a Python of this package, not in trtllm-1.2.1"


def write_python(directory: Path, *output: str, error: str = "") -> Path:
    """A python3 that prints what the probe of an environment would."""
    path = directory / "python3"
    body = f"echo '{json.dumps(output)}'" if output else f"echo '{error}' >&2; exit 1"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_environments_are_checked(repository: Path, tmp_path: Path) -> None:
    described = manifest.read_manifest(repository)
    fits = write_python(tmp_path, "1.7.1.116", "2.13.0")
    assert start.check_environment(fits, repository, described) == [start.NEVER_EXECUTED]
    without_cuda = write_python(tmp_path, "1.7.1.116", "2.13.0+cpu")
    with pytest.raises(MachineError, match=r"2\.13\.0\+cpu has no CUDA"):
        start.check_environment(without_cuda, repository, described)
    other = write_python(tmp_path, "1.6.1.120", "2.13.0")
    with pytest.raises(Mismatch, match=r"tensorrtRtx: built for 1\.7\.1\.116, here 1\.6\.1\.120"):
        start.check_environment(other, repository, described)
    broken = write_python(tmp_path, error="ImportError: libtensorrt_rtx.so.1")
    with pytest.raises(MachineError, match=r"does not import TensorRT for RTX: ImportError"):
        start.check_environment(broken, repository, described)


@pytest.mark.parametrize(
    ("version", "says"), [("1.7.1.116", "runs here"), ("1.6.1.120", "built for 1.7.1.116, here 1.6.1")]
)
def test_the_check_compares_the_library_of_this_python(
    served: Path, version: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginix.cli.engines import check as command

    monkeypatch.setattr(command, "probe_machine", lambda driver: make_machine(89))
    monkeypatch.setattr(start, "version", lambda distribution: version)
    assert main(["check", str(served)]) == (0 if version == "1.7.1.116" else 1)
    said = capsys.readouterr()
    assert says in said.out + said.err


def test_the_check_says_that_this_python_lacks_the_library(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import PackageNotFoundError

    from enginix.cli.engines import check as command

    def find_none(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(command, "probe_machine", lambda driver: make_machine(89))
    monkeypatch.setattr(start, "version", find_none)
    assert main(["check", str(served)]) == 0
    assert "TensorRT for RTX is not in this Python: its version was not compared" in capsys.readouterr().err


def test_compiled_kernels_are_in_the_units_state_or_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_start_module("rtx") is start and find_start_module("reference") is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/enginix-a:/var/lib/b")
    assert start.list_variables("a") == {"ENGINIX_RTX_CACHE": "/var/lib/enginix-a/rtx-kernels"}
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert start.list_variables("a") == {"ENGINIX_RTX_CACHE": "/c/enginix/rtx-kernels"}


def test_up_plans_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = UpRequest("tiny", TINY, None, kind="rtx", interpreted=True)
    convert, build, repository = plan_stages(request, tmp_path)
    assert convert.words[:1] == ("convert",)
    assert build.words[:4] == ("rtx-build", str(convert.output), "--model", str(TINY))
    assert repository.words[:4] == ("triton-repo", str(build.output), "--interpreter", str(convert.output))
    assert 'kind = "rtx"' in format_nix(request, None) and "mkTritonServer" in format_nix(request, None)
    for option in (["--target", "rtx-4090"], ["--device", "cuda"], ["--no-gates"]):
        assert main(["up", str(TINY), "--kind", "rtx", "--dry-run", *option]) != 0
        assert f"{option[0]}: not an option of kind rtx" in capsys.readouterr().err
    assert main(["up", str(TINY), "--kind", "rtx", "--dry-run"]) == 0
    assert "enginix rtx-build" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("machine", "reason"),
    [(None, "no NVIDIA driver"), (make_machine(90), "SM 90"), (make_machine(89, "570.1"), "570.1")],
    ids=["no driver", "another GPU", "an old driver"],
)
def test_the_gates_refuse_another_machine_before_they_ask(
    served: Path,
    machine: Machine | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def probe(driver: Any) -> Machine:
        if machine is None:
            raise MachineError("no NVIDIA driver")
        return machine

    monkeypatch.setattr(check, "probe_machine", probe)
    assert main(["gate", str(served), "--reference", str(TINY)]) != 0
    shown = capsys.readouterr().err
    assert reason in shown and "executor was never run before its release" in shown


def test_the_gates_of_another_kind_have_no_interpreter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.Manifest(artefact="engine", name="m", kind="edgellm").write(tmp_path)
    assert main(["gate", str(tmp_path), "--reference", str(TINY), "--interpreter", str(TINY)]) != 0
    assert "an engine of kind edgellm has no interpreter" in capsys.readouterr().err
