"""Evaluation by Nix, for tests that compare it with the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NIX = shutil.which("nix-instantiate")


def nix(expression: str) -> Any:
    assert NIX is not None
    done = subprocess.run(
        [NIX, "--eval", "--strict", "--json", "-E", expression],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NIX_PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(expression: str) -> Any:
    lib = f"import {ROOT}/tests/hostpkgs/lib.nix"
    return nix(f"let check = import {ROOT}/nix/check {{ lib = {lib}; }}; in {expression}")
