"""tests/run.sh: a test that fails once is named and does not fail the run; one that fails twice does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "run.sh"
# A stand-in for the Nix part: one case that passes, one that fails as often as its file says.
NIX = """#!/usr/bin/env bash
status=0
if [ -n "$*" ]; then echo "asked: $*"; fi
if [ "$(cat left)" -gt 0 ]; then echo $(($(cat left) - 1)) >left; echo 'FAIL  shaky_case (1 s)'; status=1; fi
echo 'some passed'
exit $status
"""
CASES = "test_other_case() { true; }\ntest_shaky_case() { true; }\n"
TEST = """
from pathlib import Path
def test_steady(): pass
def test_shaky():
    left = int(Path("python-left").read_text())
    Path("python-left").write_text(str(left - 1))
    assert left <= 0
"""
# One process of pytest-xdist, whatever the machine has; of the plugins, that one alone.
NPROC = "#!/bin/sh\necho 1\n"
PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}


def run_suite(place: Path, nix_failures: int, python_failures: int) -> subprocess.CompletedProcess[str]:
    """Run tests/run.sh over two small parts that fail so many times each."""
    (place / "tests/nix/cases").mkdir(parents=True)
    (place / "bin").mkdir()
    shutil.copy(RUN, place / "tests/run.sh")
    for program, text in (("tests/nix/run.sh", NIX), ("bin/nproc", NPROC)):
        (place / program).write_text(text)
        (place / program).chmod(0o755)
    (place / "tests/nix/cases/few.sh").write_text(CASES)
    (place / "left").write_text(str(nix_failures))
    (place / "python-left").write_text(str(python_failures))
    (place / "test_few.py").write_text(TEST)
    environment = os.environ | PLUGINS | {"PATH": f"{place}/bin:{os.environ['PATH']}"}
    words = [place / "tests/run.sh", sys.executable]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_fails_once(tmp_path: Path) -> None:
    done = run_suite(tmp_path, 1, 1)
    assert done.returncode == 0, done.stdout
    for name in ("shaky_case", "test_few.py::test_shaky"):
        assert f"unsteady: {name} failed beside others and passed alone" in done.stdout
    assert "asked: other_case shaky_case" in done.stdout


@pytest.mark.parametrize("part", ["nix", "python"])
def test_fails_twice(tmp_path: Path, part: str) -> None:
    done = run_suite(tmp_path, 2 * (part == "nix"), 2 * (part == "python"))
    assert done.returncode == 1 and "unsteady" not in done.stdout
