"""The package that pip builds and installs: every file, the version once, the extras that commands name."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import enginix
from enginix.cli import command_table
from enginix.optional_libraries import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

ROOT = Path(__file__).parents[3]
# Names of modules whose distribution is named otherwise.
DISTRIBUTIONS = {
    "modelopt": "nvidia-modelopt",
    "tensorrt_edgellm": "tensorrt-edgellm",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    # Brought by those that an extra names.
    "tokenizers": "transformers",
    "google": "tritonclient[grpc]",
    "grpc": "tritonclient[grpc]",
    "tritonclient": "tritonclient[grpc]",
    "onnx": "tensorrt-edgellm",
    "onnx_graphsurgeon": "tensorrt-edgellm",
    "onnxscript": "tensorrt-edgellm",
}


def _tracked() -> set[str]:
    words = ["git", "ls-files", "python/enginix"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.removeprefix("python/") for line in done.stdout.split()}


def test_the_wheel_has_every_file_and_nothing_else(distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    assert wheel.name == f"enginix-{enginix.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        about = {name for name in archive.namelist() if name.split("/")[0].endswith(".dist-info")}
    assert held == _tracked()
    assert {"enginix/checkpoint/casts.c", "enginix/checkpoint/casts.sh"} <= held
    assert any(name.endswith("/licenses/LICENSE") or name.endswith("/LICENSE") for name in about)


def test_the_sdist_has_what_the_wheel_is_built_from(distributions: Path) -> None:
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    assert _tracked() <= held and {"LICENSE", "pyproject.toml"} <= held


def test_the_metadata(distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == enginix.__version__
    assert set(EXTRAS) | {"all", "triton", "modelopt"} <= set(metadata.get_all("Provides-Extra", []))


def _requirements(extra: str) -> set[str]:
    """Names of an extra's requirements, enginix's own extras resolved, with their own extras."""
    table = tomllib.loads((ROOT / "python/pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = set()
    for line in table[extra]:
        if own := re.fullmatch(r"enginix\[([^\]]+)\]", line):
            found |= {r for name in own[1].split(",") for r in _requirements(name)}
        else:
            found.add(re.match(r"[\w.-]+(\[[\w,]+\])?", line)[0])  # type: ignore[index]
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_the_modules_that_the_table_says(extra: str) -> None:
    named = {name.split("[")[0] for name in _requirements(extra)} | _requirements(extra)
    for module in EXTRAS[extra].modules:
        if extra == "edgellm":  # its wheel brings PyTorch and transformers
            assert named >= {"tensorrt-edgellm"}
        else:
            assert DISTRIBUTIONS.get(module, module) in named, module


def test_the_table_names_commands_that_exist_and_old_extras_are_the_new_ones() -> None:
    assert {command for extra in EXTRAS.values() for command in extra.commands} <= set(command_table.COMMANDS)
    assert _requirements("triton") == _requirements("serve")
    assert _requirements("modelopt") == _requirements("quantize")
    assert _requirements("all") >= _requirements("reference") | _requirements("gateway")


def test_what_pip_leaves_in_a_checkout_is_ignored() -> None:
    words = [
        "git",
        "check-ignore",
        "python/build/lib/x.py",
        "python/enginix.egg-info/PKG-INFO",
        "python/dist/x",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(done.stdout.split()) == 3


@pytest.mark.slow
def test_the_installed_wheel_converts_with_and_without_a_compiler(
    core_environment: Path, tmp_path: Path
) -> None:
    model, program = ROOT / "tests/models/tiny-qwen3", core_environment / "bin/enginix"
    libraries = []
    for name, path in (("compiled", "/usr/bin:/bin"), ("numpy", "")):
        env = {"PATH": path, "HOME": str(tmp_path / name), "XDG_CACHE_HOME": str(tmp_path / name / "cache")}
        words = [program, "convert", model, "--dtype", "float32", "-o", tmp_path / name / "checkpoint"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        libraries.append(list((tmp_path / name).rglob("*.so")))
    assert [len(found) for found in libraries] == [1, 0]
    one, two = ((tmp_path / n / "checkpoint/rank0.safetensors").read_bytes() for n in ("compiled", "numpy"))
    assert one == two
