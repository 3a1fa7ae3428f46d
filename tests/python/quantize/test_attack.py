"""Killed midway, disk full, no GPU, damaged model: nothing half-written, one named error."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enginix.cli import main

pytest.importorskip("modelopt")
pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).parents[3] / "python"


def _visible(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir() if not p.name.startswith(".")]


def test_killed_midway_leaves_no_output(model: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "work/out"
    words = [
        "quantize",
        str(model),
        "-o",
        str(out),
        "--format",
        "int4_awq",
        "--calibration",
        str(calibration),
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "enginix", *words],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    while not list(tmp_path.glob("work/.out*")) and child.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert _visible(tmp_path / "work") == []


def test_no_space_for_the_weights(model: Path, calibration: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 300 kB: the write fails as on a full disk, in ModelOpt's export."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    out = tmp_path / "work/out"
    words = ["quantize", str(model), "-o", str(out), "--format", "fp8", "--calibration", str(calibration)]
    done = subprocess.run(
        [sys.executable, "-m", "enginix", *words],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (3, 5) and "error:" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_a_full_disk_is_named(
    enginix: Any, model: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small file system of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        words = ("quantize", model, "-o", small / "out", "--format", "fp8", "--calibration", calibration)
        assert main([str(word) for word in words]) == 5
        assert "are free" in capsys.readouterr().err
        # The check beforehand out of the way: the export itself meets the full disk.
        subprocess.run(["mount", "-o", "remount,size=1400k", str(small)], check=True)
        late = enginix(*words)
        assert late.returncode == 5 and "fix: free disk space" in late.stderr, late.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_gpu(
    model: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--format", "fp8", "--calibration", str(calibration), "--device", "cuda"]
    assert main(["quantize", str(model), "-o", str(tmp_path / "out"), *words]) == 5
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_damaged_model(
    model: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "model"
    shutil.copytree(model, there)
    weights = there / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    words = ["--format", "fp8", "--calibration", str(calibration)]
    assert main(["quantize", str(there), "-o", str(tmp_path / "out"), *words]) == 3
    assert "truncated" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_modelopt(enginix: Any, model: Path, calibration: Path, tmp_path: Path) -> None:
    (tmp_path / "modelopt").mkdir()
    (tmp_path / "modelopt/__init__.py").write_text("raise ImportError('gone', name='modelopt')")
    words = ("quantize", model, "-o", tmp_path / "out", "--format", "fp8", "--calibration", calibration)
    done = enginix(*words, PYTHONPATH=f"{tmp_path}:{PACKAGE}")
    assert done.returncode == 5 and "enginix quantize needs the extra 'quantize'" in done.stderr
