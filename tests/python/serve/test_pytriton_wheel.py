"""enginix tritonserver: the pinned wheel alone, whole or not at all, where the wheel has a build."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from enginix import cli, process
from enginix.errors import MachineError
from enginix.files import sha256_file
from enginix.serve import pytriton_wheel, tritonserver
from enginix.tables import load_table

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ENGINIX_TRITONSERVER", raising=False)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the pinned one's layout, named by the table, whose hash the table has."""
    path = tmp_path / load_table("tritonserver_wheel")["file"]
    with zipfile.ZipFile(path, "w") as archive:
        names = [
            "bin/tritonserver",
            "backends/python/libtriton_python.so",
            "caches/local/libtritoncache_local.so",
        ]
        names += ["backends/python/triton_python_backend_utils.py"]
        names += [
            f"python_backend_stubs/{v}/{pytriton_wheel.STUB}"
            for v in load_table("tritonserver_wheel")["pythons"]
        ]
        for name in names:
            info = zipfile.ZipInfo(f"pytriton/tritonserver/{name}")
            info.external_attr = (0o100777 if "." not in Path(name).name else 0o100666) << 16
            archive.writestr(info, f"{name}\n")
        archive.writestr("pytriton/client/__init__.py", "")
        archive.writestr("nvidia_pytriton.libs/libtritonserver.so", "a library")
        archive.writestr("nvidia_pytriton-0.7.0.dist-info/licenses/LICENSE", "Apache License")
    monkeypatch.setitem(load_table("tritonserver_wheel"), "sha256", sha256_file(path))
    return path


def _run(*words: str | Path) -> int:
    return cli.main(["tritonserver", *map(str, words)])


def test_the_layout(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _run("-o", out, "--wheel", wheel) == 0
    found = tritonserver.find_tritonserver(None)
    assert found.directory == out and found.version == "2.51.0" and found.runtime == "reference"
    assert (
        found.stub.read_text()
        == f"python_backend_stubs/{pytriton_wheel.python_version()}/{found.stub.name}\n"
    )
    assert os.access(found.stub, os.X_OK) and os.access(found.program, os.X_OK)
    # The programs look for their libraries two directories above where they are.
    assert (found.program.resolve().parents[3] / "nvidia_pytriton.libs/libtritonserver.so").is_file()
    assert not list(out.rglob("client")) and len(list(out.rglob("LICENSE"))) == 1
    assert not [p for p in out.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022]


def test_one_that_is_named_goes_before_one_that_was_made(wheel: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert _run("-o", tmp_path / name, "--wheel", wheel) == 0
    assert tritonserver.find_tritonserver(None).directory == tmp_path / "second"
    assert tritonserver.find_tritonserver(tmp_path / "first").directory == tmp_path / "first"


def test_a_directory_that_went_is_not_found(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run("-o", tmp_path / "out", "--wheel", wheel) == 0
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(pytriton_wheel, "find_installed", lambda: None)
    with pytest.raises(MachineError, match="tritonserver -o"):
        tritonserver.find_tritonserver(None)


def test_a_wheel_of_another_hash_is_refused(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel.write_bytes(wheel.read_bytes() + b" ")
    assert _run("-o", tmp_path / "out", "--wheel", wheel) == 2
    said = capsys.readouterr().err
    assert sha256_file(wheel) in said and load_table("tritonserver_wheel")["sha256"] in said
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


def test_an_output_that_exists(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").touch()
    assert _run("-o", tmp_path / "out", "--wheel", wheel) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", wheel.name])


@pytest.mark.parametrize(
    ("patches", "says"),
    [
        ({"machine": "aarch64"}, "is for x86_64-linux, this machine is aarch64-linux"),
        ({"platform": "darwin"}, "this machine is x86_64-darwin"),
        ({"version": (3, 14)}, "has no stub for Python 3.14; it has them for 3.8, "),
        ({"libc": ("glibc", "2.31")}, "needs glibc 2.35 or later, this machine has glibc 2.31"),
        ({"libc": ("", "")}, "this machine has another C library"),
    ],
)
def test_other_machines_are_refused_by_name(
    patches: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: patches.get("machine", "x86_64"))
    monkeypatch.setattr(platform, "libc_ver", lambda: patches.get("libc", ("glibc", "2.36")))
    monkeypatch.setattr(sys, "platform", patches.get("platform", "linux"))
    if "version" in patches:
        monkeypatch.setattr(sys, "version_info", patches["version"])
    monkeypatch.setattr(pytriton_wheel, "download_wheel", lambda _: pytest.fail("it was fetched"))
    assert _run("-o", tmp_path / "out") == 5
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("reason", ["no pip", "pip fails"])
def test_without_a_package_index(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:4] == ["-m", "pip", "download"] and "--require-hashes" in words
        said = "ERROR: no such index https://user:secret@index.example/simple\n"
        return subprocess.CompletedProcess(words, 1, "", said)

    if reason == "no pip":
        monkeypatch.setattr(pytriton_wheel, "find_spec", lambda _: None)
    monkeypatch.setattr(process, "run_program", fail)
    assert _run("-o", tmp_path / "out") == 5
    said = capsys.readouterr().err
    assert "--wheel FILE" in said and "secret" not in said and not (tmp_path / "out").exists()


def test_a_missing_library_is_named(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ldd(words: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        missing = "\tlibpython3.11.so.1.0 => not found\n" if words[1].name == pytriton_wheel.STUB else ""
        return subprocess.CompletedProcess(words, 0, "\tlibc.so.6 => /lib/libc.so.6\n" + missing, "")

    monkeypatch.setattr(process, "run_program", ldd)
    assert _run("-o", tmp_path / "out", "--wheel", wheel) == 5
    said = capsys.readouterr().err
    assert "linked against libpython3.11.so.1.0" in said and "apt-get install libpython3" in said
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


def test_an_installed_pytriton_is_found(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for program in (site / "pytriton").rglob("*"):
        program.chmod(0o755)
    (site / "nvidia_pytriton-0.7.0.dist-info/METADATA").write_text("Name: nvidia-pytriton\nVersion: 0.7.0\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    found = tritonserver.find_tritonserver(None)
    assert found.program.resolve() == site / "pytriton/tritonserver/bin/tritonserver"
    assert pytriton_wheel.python_version() in str(found.stub.resolve())
    assert tritonserver.find_tritonserver(None) == found
    (site / "nvidia_pytriton-0.7.0.dist-info/METADATA").write_text("Name: nvidia-pytriton\nVersion: 0.5.0\n")
    with pytest.raises(
        MachineError, match=r"nvidia-pytriton 0\.5\.0 is installed, and enginix knows 0\.7\.0"
    ):
        tritonserver.find_tritonserver(None)


def test_one_wheel_is_pinned_everywhere() -> None:
    row = load_table("tritonserver_wheel")
    lock = json.loads((ROOT / "nix/python/locks/tritonserver.json").read_text())["wheels"][row["project"]]
    assert lock["version"] == row["version"]
    assert lock["files"]["x86_64-linux"] == {"file": row["file"], "sha256": row["sha256"]}


@pytest.mark.slow
def test_the_real_wheel_answers_its_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An environment made by Nix has no pip; the fix that its error names is the way.
    arguments: list[str | Path] = []
    if find_spec("pip") is None:
        assert _run("-o", tmp_path / "out") == 5
        assert "pass it as --wheel FILE" in capsys.readouterr().err
        row = pytriton_wheel.wheel_row()
        words = ["/usr/bin/python3", "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path]
        words += ["--python-version", "3.11", "--only-binary", ":all:", f"{row['project']}=={row['version']}"]
        if subprocess.run(words, check=False).returncode:
            pytest.skip("no package index can be reached")
        arguments = ["--wheel", tmp_path / row["file"]]
    code = _run("-o", tmp_path / "out", *arguments)
    if code == 5 and "pip does not get" in capsys.readouterr().err:
        pytest.skip("no package index can be reached")
    assert code == 0
    found = tritonserver.find_tritonserver(None)
    done = subprocess.run([found.program, "--help"], capture_output=True, text=True, check=False)
    assert "--model-repository" in done.stdout + done.stderr
    linked = subprocess.run(["ldd", found.stub.resolve()], capture_output=True, text=True, check=False).stdout
    assert "not found" not in linked
