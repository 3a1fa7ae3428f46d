"""Servers compare an engine with the GPU and the runtime that are here, before they start anything: lying and
foreign manifests, for each server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.cli import main
from enginix.compatibility import check
from enginix.compatibility.check import compare_with_machine
from enginix.errors import ManifestError
from enginix.kinds.edgellm.export import read_model_identity
from enginix.kinds.tensorrt.build import stage as stage
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.manifest import Manifest, read_manifest
from enginix.runtime import image, table
from enginix.runtime.sandbox import Sandbox
from enginix.serve.tritonserver import STUB
from enginix.triton.options import RepositoryOptions

TINY = Path(__file__).parents[2] / "models" / "tiny-qwen3"
TARGET = {"name": "h200", "sm": 90, "gpu": "NVIDIA H200", "memory": 143771 << 20, "count": 1}
RUNTIME = {
    "id": "trtllm-1.2.1",
    "tensorrtLlm": "1.2.1",
    "nccl": "2.28.9",
    "driverFloor": "590.44.01",
    "driver": "590.44.01",
}
# What a manifest says, and what is said about it on the stand-in's H200 with TensorRT-LLM 1.2.1.
LIES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"sm": 100, "gpu": "NVIDIA B200"}, {}, "sm: built for 100, here NVIDIA H200 (SM 90)"),
    ({"sm": None}, {}, "sm: built for None, here NVIDIA H200 (SM 90)"),
    ({"sm": "90"}, {}, "sm: built for 90, here NVIDIA H200 (SM 90)"),
    ({"count": 2}, {}, "count: built for 2, here 1"),
    ({"count": "two"}, {}, "target.count is 'two'"),
    ({}, {"driverFloor": "999.1", "driver": "999.2"}, "driver: built for 999.1 or later, here 590.44.01"),
    ({}, {"driverFloor": 590}, "runtime.driverFloor is 590"),
]  # fmt: skip


def engine(directory: Path, kind: str, target: dict[str, Any], runtime: dict[str, Any], **more: Any) -> Path:
    directory.mkdir(parents=True)
    Manifest("engine", "m", kind, target=target, runtime=runtime, **more).write(directory)
    return directory


@pytest.fixture
def trtllm(tmp_path: Path, rootfs: Path, driver: Callable[..., Path]) -> Callable[..., list[str]]:
    """The command line that serves an engine by trtllm-serve."""

    def make(
        target: dict[str, Any], runtime: dict[str, Any], kind: str = "tensorrt", **gpu: Any
    ) -> list[str]:
        made = engine(tmp_path / "engine", kind, TARGET | target, RUNTIME | runtime)
        return ["runner", str(made), "--rootfs", str(rootfs), "--driver", str(driver(**gpu)), "--build-only"]

    return make


@pytest.mark.parametrize(("target", "runtime", "said"), LIES)
def test_trtllm_serve(trtllm, capsys, target, runtime, said) -> None:
    assert main(trtllm(target, runtime)) in (1, 3)
    error = capsys.readouterr().err
    assert said in error and "fix:" in error


def test_trtllm_serve_in_another_image(trtllm, capsys) -> None:
    assert main(trtllm({}, {"tensorrtLlm": "1.1.0"})) == 1
    assert "tensorrtLlm: built for 1.1.0, here 1.2.1" in capsys.readouterr().err


def test_what_does_no_harm_is_said(trtllm, capsys) -> None:
    assert main(trtllm({"gpu": "NVIDIA GH200 480GB"}, {"nccl": "2.27.7"})) == 0
    said = capsys.readouterr().err
    assert "note: nccl: built for 2.27.7, here 2.28.9" in said and "note: gpu: built for NVIDIA GH200" in said


def test_a_range_of_the_table_is_no_version(trtllm, capsys) -> None:
    assert main(trtllm({}, {"nccl": ">=2.27.7,<=2.28.9"})) == 0
    assert "nccl" not in capsys.readouterr().err


@pytest.fixture
def edgellm(tmp_path: Path, driver: Callable[..., Path]) -> Callable[..., list[str]]:
    """The command line that serves an Edge-LLM engine; its Python is a stand-in that tells a version."""

    def make(target: dict[str, Any], runtime: dict[str, Any], **gpu: Any) -> list[str]:
        own = {
            "name": "rtx-5090",
            "sm": 120,
            "gpu": "NVIDIA GeForce RTX 5090",
            "memory": 32607 << 20,
            "count": 1,
        }
        made = engine(
            tmp_path / "engine",
            "edgellm",
            own | target,
            {"id": "edgellm-0.11.0", "edgellm": "0.11.0"} | runtime,
            inputs={"model": read_model_identity(TINY)},
            options={
                "builder": "direct",
                "limits": {"maxInputLen": 64, "maxBatchSize": 1, "maxKvCacheCapacity": 128},
            },
        )
        (made / "engine").mkdir()
        python = tmp_path / "python3"
        told = {"edgellm": "0.11.0", "tensorrt": "10.16.0.72", "bundle": f"{tmp_path}/state/cache/x"}
        python.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
        python.chmod(0o755)
        here = driver(**({"name": "NVIDIA GeForce RTX 5090", "capability": "12.0"} | gpu))
        words = ["edgellm-serve", str(made), "--model", str(TINY), "--state", str(tmp_path / "state")]
        return [*words, "--python", str(python), "--driver", str(here), "--dry-run"]

    return make


@pytest.mark.parametrize(
    ("target", "runtime", "gpu", "said"),
    [
        ({}, {}, {"name": "NVIDIA A100", "capability": "8.0"}, "sm: built for 120, here NVIDIA A100 (SM 80)"),
        ({"sm": 86}, {}, {}, "sm: built for 86, here NVIDIA GeForce RTX 5090 (SM 120)"),
        ({"count": 2}, {}, {}, "count: built for 2, here 1"),
        ({}, {"edgellm": "0.12.0"}, {}, "edgellm: built for 0.12.0, here 0.11.0"),
        ({}, {"tensorrt": "11.0.0.114"}, {}, "tensorrt: built for 11.0.0.114, here 10.16.0.72"),
    ],
)
def test_edgellm_serve(edgellm, capsys, target, runtime, gpu, said) -> None:
    assert main(edgellm(target, runtime, **gpu)) == 1
    error = capsys.readouterr().err
    assert said in error and "build" in error


def test_a_wheel_that_says_nothing(edgellm, tmp_path, capsys) -> None:
    words = edgellm({}, {})
    (tmp_path / "python3").write_text("#!/bin/sh\necho '[]'\n")
    assert main(words) == 5 and "the wheel did not print its path for engines" in capsys.readouterr().err


def test_edgellm_serve_at_home(edgellm, tmp_path) -> None:
    (tmp_path / "state" / "cache").mkdir(parents=True)
    assert main(edgellm({}, {})) == 0


@pytest.fixture
def triton(
    tmp_path: Path, driver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The command line that serves a repository of a compiled engine by Triton; the installation is empty
    files."""

    def make(
        target: dict[str, Any], runtime: dict[str, Any], kind: str = "tensorrt", **gpu: Any
    ) -> list[str]:
        made = engine(tmp_path / "engine", kind, TARGET | target, RUNTIME | runtime)
        (made / "engine").mkdir()
        (made / "engine" / "config.json").write_text("{}")
        (made / "tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, made / "tokenizer")
        read_manifest(made).write(made)
        repository = tmp_path / "repository"
        build_triton_repository(made, repository, RepositoryOptions(max_batch_size=4))
        installation = tmp_path / "triton"
        parts = ["bin/tritonserver", "backends/python/libtriton_python.so", f"backends/python/{STUB}"]
        for part in (*parts, "backends/tensorrtllm/libtriton_tensorrtllm.so"):
            path = installation / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o755)
        (installation / "runtime.json").write_text(json.dumps({"name": "trtllm-1.2.1"}))
        (installation / "bin/mpirun").touch(0o755)  # for engines of several ranks; nothing is started
        monkeypatch.setenv("PATH", f"{installation / 'bin'}:{os.environ['PATH']}")
        words = ["serve", str(repository), "--tritonserver", str(installation), "--check"]
        return [*words, "--driver", str(driver(**gpu))]

    return make


@pytest.mark.parametrize(("target", "runtime", "said"), LIES)
def test_triton(triton, capsys, target, runtime, said) -> None:
    assert main(triton(target, runtime)) in (1, 3)
    error = capsys.readouterr().err
    assert said in error and "fix:" in error


def test_triton_of_another_runtime(triton, capsys) -> None:
    assert main(triton({}, {"id": "trtllm-1.1.0"})) != 0
    assert "trtllm-1.1.0" in capsys.readouterr().err


def test_triton_in_an_image_that_lies_about_its_version(triton, rootfs, tmp_path, capsys) -> None:
    """The installation calls itself the right runtime; its TensorRT-LLM is another one."""
    words = triton({}, {"tensorrtLlm": "1.1.0"})
    image_ = tmp_path / "image"
    shutil.copytree(rootfs, image_, symlinks=True)
    shutil.copytree(tmp_path / "triton", image_ / "opt/tritonserver", dirs_exist_ok=True)
    at = words.index("--tritonserver")
    assert main([*words[:at], "--rootfs", str(image_), *words[at + 2 :]]) == 1
    assert "tensorrtLlm: built for 1.1.0, here 1.2.1" in capsys.readouterr().err


def test_triton_at_home_goes_on_to_the_next_check(triton, capsys) -> None:
    main(triton({}, {}))
    assert "built for" not in capsys.readouterr().err


def test_an_engine_that_hides_its_target_is_refused() -> None:
    for kind in ("tensorrt", "edgellm"):
        with pytest.raises(ManifestError, match="build this engine again"):
            compare_with_machine(Manifest("engine", "m", kind), None)
    assert compare_with_machine(Manifest("engine", "m", "llmapi"), None).runs


def test_check_compares_with_an_image(tmp_path, rootfs, driver, capsys) -> None:
    made = engine(tmp_path / "engine", "tensorrt", TARGET, RUNTIME | {"tensorrtLlm": "1.1.0"})
    words = ["check", str(made), "--driver", str(driver())]
    assert main(words) == 0
    assert main([*words, "--rootfs", str(rootfs)]) == 1
    assert "tensorrtLlm: built for 1.1.0, here 1.2.1" in capsys.readouterr().err


def test_versions_of_an_image(tmp_path, rootfs) -> None:
    runtime = table.find_runtime("trtllm-1.2.1")
    assert image.read_image_versions(rootfs, runtime) == {"tensorrtLlm": "1.2.1", "nccl": "2.28.9"}
    assert (
        image.read_image_versions(None, runtime) == {}
        and image.read_image_versions(tmp_path / "none", runtime) == {}
    )
    library = tmp_path / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    (library / "libnccl.so.2").symlink_to("libnccl.so.2.27.7")
    (library / "libnccl.so.2.27.7").touch()
    assert image.find_image_nccl(tmp_path, runtime) == "2.27.7"
    (library / "libnccl.so.2.27.7").rename(library / "libnccl.so.2")
    assert image.find_image_nccl(tmp_path, runtime) is None
    packages = tmp_path / str(runtime.site_packages).lstrip("/")
    (packages / "nvidia_nccl_cu13-2.28.3.dist-info").mkdir(parents=True)
    assert image.find_image_nccl(tmp_path, runtime) == "2.28.3"
    (packages / "nvidia/nccl/include").mkdir(parents=True)
    header = packages / "nvidia/nccl/include/nccl.h"
    header.write_bytes(b"\xff#define NCCL_MAJOR 2\n#define NCCL_MINOR x\n")
    assert image.find_image_nccl(tmp_path, runtime) == "2.28.3"
    header.write_text("#define NCCL_MAJOR 2\n#define NCCL_MINOR 29\n#define NCCL_PATCH 0\n")
    assert image.find_image_nccl(tmp_path, runtime) == "2.29.0"


@pytest.mark.parametrize(
    ("code", "version"),
    [("22809\n", "2.28.9"), ("22707", "2.27.7"), ("2", None), ("", None), ("x", None), ("٣٢٧٠٧", None)],
)
def test_the_code_of_nccl(code, version) -> None:
    assert image.parse_nccl_code(code) == version


NCCL = "int ncclGetVersion(int *v) { *v = 22903; return STATUS; }"


@pytest.mark.parametrize(("status", "expected"), [(0, "2.29.3"), (1, ">=2.27.7,<=2.28.9")])
def test_the_library_itself_is_asked(tmp_path, monkeypatch, status, expected) -> None:
    """A stand-in for libnccl, in a runtime without an image: the table has the last word only."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "nccl.c").write_text(NCCL)
    line = ["gcc", "-shared", "-fPIC", f"-DSTATUS={status}", "-o", str(tmp_path / "libnccl.so.2")]
    subprocess.run([*line, str(tmp_path / "nccl.c")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = stage.read_nccl_version(Sandbox(table.find_runtime("trtllm-1.2.1"), None, tmp_path))
    assert found["nccl"] == expected
    assert found["ncclSource"].startswith("the table" if status else "ncclGetVersion")


def test_at_start_without_a_driver(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    made = Manifest("engine", "m", "tensorrt", target=dict(TARGET), runtime=dict(RUNTIME))
    with pytest.raises(check.Mismatch, match="gpu: built for NVIDIA H200, here no NVIDIA driver"):
        check.check_before_start(made, tmp_path, tmp_path)
    assert check.check_before_start(Manifest("engine", "r", "reference"), tmp_path, tmp_path).runs
