"""Runs the property tests from random seeds for a while; prints each counterexample ready to be pinned.

    python tests/fuzz.py [--minutes N] [pytest arguments ...]

Every pass has a new seed. Later passes leave a failed test out, so that they find others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_pass(seed: int, seconds: float, failures: Path, words: list[str]) -> int | None:
    """Run the tests once.

    Returns:
        pytest's exit status; None where the time ended first.
    """
    line = [sys.executable, "-m", "pytest", "-q", "-m", "hypothesis or fuzz", f"--hypothesis-seed={seed}"]
    env = os.environ | {"ENGINIX_FUZZ": str(failures)}
    said = failures.with_name("said")
    with (
        said.open("wb") as sink,
        subprocess.Popen([*line, *words], cwd=ROOT, env=env, stdout=sink, stderr=sink) as process,
    ):
        try:
            status = process.wait(seconds)
            if status not in (0, 1):
                print(said.read_text("utf-8", "replace"))
            return status
        except subprocess.TimeoutExpired:
            size = failures.stat().st_size
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # A test that is interrupted may fail of that alone.
            os.truncate(failures, size)
            return None


def read_failures(path: Path) -> dict[str, dict[str, object]]:
    """Return the failures by test; the first of each."""
    failures: dict[str, dict[str, object]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        failures.setdefault(row["test"], row)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("FUZZ_MINUTES") or 60))
    options, words = parser.parse_known_args()
    # nohup and a shell's `&` have it ignored, and pytest would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "failures"
        path.touch()
        passes = 0
        shown: set[str] = set()
        while (seconds := end - time.monotonic()) > 0:
            seed = random.SystemRandom().getrandbits(32)
            status = run_pass(
                seed, seconds, path, [*words, *(f"--deselect={test}" for test in sorted(shown))]
            )
            for test, row in read_failures(path).items():
                if test not in shown:
                    shown.add(test)
                    examples = "\n".join(row["examples"]) or "no counterexample"
                    print(f"\nFAIL  {test} (seed {seed})\n{row['report']}")
                    print(f"\nto pin above the test:\n{examples}", flush=True)
            if status is None:
                break
            if status not in (0, 1):
                print(f"fuzz: pytest ended with status {status} (seed {seed})")
                return 1
            passes += 1
            left = max(0.0, end - time.monotonic()) / 60
            print(
                f"pass {passes}: seed {seed}, {len(shown)} tests failed so far, {left:.0f} minutes left",
                flush=True,
            )
    print("\n  ".join([f"fuzz: {passes} whole passes, {len(shown)} tests failed", *sorted(shown)]))
    return 1 if shown else 0


if __name__ == "__main__":
    raise SystemExit(main())
