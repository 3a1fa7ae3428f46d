"""Property tests meet the same examples on every machine and beside every other test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROPERTY = """
import json, os
from hypothesis import given, strategies as st
{imports}

@given(st.integers() | st.text() | st.binary() | st.floats())
def test_met(value):
    with open(os.environ["MET"], "a") as f:
        f.write(repr(value) + "\\n")
"""


def met(directory: Path, imports: str = "", **environment: str) -> list[str]:
    """Return the examples that a property test meets in a process of its own."""
    directory.mkdir()
    # Source code of one's own; Hypothesis would draw its constants.
    (directory / "constants.py").write_text(
        "\n".join(f"A{n} = {n * 7919}; B{n} = 'text {n}'" for n in range(200))
    )
    (directory / "test_met.py").write_text(PROPERTY.format(imports=imports))
    words = ["-m", "pytest", "-q", "--noconftest", "-p", "conftest", "-p", "no:cacheprovider", "test_met.py"]
    # Of the plugins that are installed, Hypothesis' alone.
    words += ["-p", "_hypothesis_pytestplugin"]
    env = os.environ | {
        "PYTHONPATH": f"{HERE}:{directory}",
        "MET": str(directory / "met"),
        "ENGINIX_FUZZ": "",
        "ENGINIX_SLOW": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    env |= environment
    done = subprocess.run(
        [sys.executable, *words], cwd=directory, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return (directory / "met").read_text().splitlines()


def test_examples_are_the_same_whatever_is_loaded(tmp_path: Path) -> None:
    alone = met(tmp_path / "alone", ENGINIX_SLOW="1")
    assert len(alone) >= 100
    assert met(tmp_path / "beside", "import constants", ENGINIX_SLOW="1") == alone


def test_fewer_examples_are_met_where_slow_tests_are_not(tmp_path: Path) -> None:
    assert 25 <= len(met(tmp_path / "fewer")) < 50


def test_fuzzing_explores(tmp_path: Path) -> None:
    one, two = (met(tmp_path / name, ENGINIX_FUZZ="1") for name in ("one", "two"))
    assert one != two and len(one) >= 100


def test_the_profile_is_chosen_in_one_place() -> None:
    """A test that sets these undoes the profile: fixed seeds, no database, no deadline under load."""
    of_its_own = re.compile(
        r"suppress_health_check|derandomize|load_profile|register_profile|database=|deadline=(?!None)"
    )
    tests = [path for path in HERE.rglob("*.py") if path not in (HERE / "conftest.py", Path(__file__))]
    assert len(tests) > 100
    assert [str(path) for path in tests if of_its_own.search(path.read_text())] == []
