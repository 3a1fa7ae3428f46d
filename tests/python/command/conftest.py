"""The package as pip makes it, once a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist, and a wheel that was built from the sdist, of the files that git has."""
    work = tmp_path_factory.mktemp("distributions")
    out = work / "out"
    names = subprocess.run(
        ["git", "ls-files", "-z", "python"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Links as the files that they lead to: LICENSE is the repository's.
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod((ROOT / name).stat().st_mode & 0o777)
    for function, directory in (("build_sdist", work / "python"), ("build_wheel", work / "unpacked")):
        if function == "build_wheel":
            [sdist] = out.glob("*.tar.gz")
            directory.mkdir()
            subprocess.run(["tar", "xf", sdist, "-C", directory, "--strip-components=1"], check=True)
        code = f"import setuptools.build_meta as b; b.{function}({str(out)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def core_environment(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and its core dependencies alone."""
    there = tmp_path_factory.mktemp("core") / "venv"
    subprocess.run([sys.executable, "-m", "venv", there], check=True)
    [wheel] = distributions.glob("*.whl")
    done = subprocess.run(
        [there / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return there
