"""Tables of rotation have the same bytes on every CPU and are as near as float64 comes."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from enginix.kinds.rtx.network.rotation_table import compute_cosines_and_sines, make_rotation_tables

PACKAGE = Path(__file__).resolve().parents[3] / "python"
# 32,768 tokens of heads of 128: so many that NumPy's own sines differ from CPU to CPU.
POSITIONS = 32783
SCRIPT = f"""
import hashlib, types
from enginix.kinds.rtx.network.rotation_table import make_rotation_tables
config = types.SimpleNamespace(rotary_scaling=None, rotary_embedding_dim=128, rotary_base=500000.0)
for table in make_rotation_tables(config, {POSITIONS}):
    print(hashlib.sha256(table.tobytes()).hexdigest())
"""
# What NumPy 1.26 and 2 call the extensions of x86-64 that its loops are written for.
EXTENSIONS = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"


def run_script(**variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), **variables}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_tables_do_not_depend_on_the_cpu() -> None:
    config: Any = types.SimpleNamespace(rotary_scaling=None, rotary_embedding_dim=128, rotary_base=500000.0)
    digests = [hashlib.sha256(t.tobytes()).hexdigest() for t in make_rotation_tables(config, POSITIONS)]
    assert digests == run_script(NPY_DISABLE_CPU_FEATURES=EXTENSIONS).split()


def test_cosines_and_sines_equal_those_of_the_c_library() -> None:
    rng = np.random.default_rng(0)
    angles = np.concatenate(
        [rng.random(20_000) * 32768, np.arange(200) * (math.pi / 4), rng.random(2000) * 1e6]
    )
    cosines, sines = compute_cosines_and_sines(angles)
    assert np.abs(cosines - [math.cos(x) for x in angles]).max() <= 3e-16
    assert np.abs(sines - [math.sin(x) for x in angles]).max() <= 3e-16
