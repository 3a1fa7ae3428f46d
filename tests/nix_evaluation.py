"""Evaluation by Nix, for tests that compare it with the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import UsageError

ROOT = Path(__file__).parents[1]
NIX = shutil.which("nix-instantiate")
needs_nix = pytest.mark.skipif(NIX is None, reason="Nix is not installed")


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
    """Evaluate an expression over `check`, `lib` and `gpus`."""
    return nix(f"""
      let
        lib = import {ROOT}/tests/hostpkgs/lib.nix;
        check = import {ROOT}/nix/check {{ inherit lib; }};
        gpus = (lib.importJSON {ROOT}/python/enginix/data/machine/gpus.json).gpus;
      in {expression}""")


def evaluate(expression: str, data: Any, tmp_path: Path) -> Any:
    """A Nix expression over `check` and `data`; `accepts e`: e evaluates; `value e`: its value or null."""
    (tmp_path / "data.json").write_text(json.dumps(data))
    return check(f"""
      let
        data = lib.importJSON {tmp_path}/data.json;
        try = e: builtins.tryEval (builtins.deepSeq e e);
        accepts = e: (try e).success;
        value = e: let t = try e; in if t.success then t.value else null;
      in {expression}""")


def said(call: Any) -> Any:
    try:
        return call()
    except UsageError:
        return None
