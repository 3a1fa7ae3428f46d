"""Runs the GPU checks without pytest, prints a table with the GPU's name, exits 1 where something is wrong.

    tests/gpu/wheels.sh            # where there is a network: ModelOpt and transformers, for a bare machine
    python3 tests/gpu/run.py [--device cuda] [--only CHECK] [--json FILE]

Wheels in tests/gpu/wheels are unpacked into a temporary directory and come before what is installed. Lines
are shown as they are found, and all as a table at the end. A part whose imports are missing is skipped, with
the reason in the table. ``--device cpu`` tries the checks themselves where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python")]
# Module → what its checks are about; each has CHECKS.
Rows = list[dict[str, str]]
MODULES = {
    "reference_checks": "reference executor",
    "quantize_checks": "quantization by ModelOpt",
}


def machine(device: str) -> dict[str, str]:
    """What the figures belong to."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "nvidia-modelopt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{properties.name}, SM {properties.major}{properties.minor}"
        found["cuda"] = str(torch.version.cuda)
    return found


def unpack(wheels: Path, into: Path) -> None:
    """Puts wheels where they are found first, without touching the machine's own packages."""
    found = sorted(map(str, wheels.glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(into), *found], check=True)
    sys.path.insert(0, str(into))
    os.environ["PYTHONPATH"] = f"{into}:{os.environ.get('PYTHONPATH', '')}"


def run(device: str, only: str | None, show: Callable[[Rows], None]) -> tuple[Rows, bool]:
    """Rows of the report, and whether all went well; ``show`` has them as they are found."""
    rows: Rows = []
    well = True

    def add(*cells: str) -> None:
        rows.append(dict(zip(("check", "what", "value", "bound"), cells, strict=True)))
        show(rows)

    for name, title in MODULES.items():
        try:
            checks = importlib.import_module(name).CHECKS
        except ImportError as e:
            add(title, "all", f"skipped: {e}", "")
            continue
        for check, function in checks.items():
            if only not in (None, check):
                continue
            started = time.perf_counter()
            try:
                with tempfile.TemporaryDirectory() as work:
                    for row in function(device, Path(work)):
                        add(check, row.what, row.value, row.bound)
            except Exception as e:
                well = False
                traceback.print_exc()
                add(check, "FAILED", f"{type(e).__name__}: {e}", "")
            add(check, "took", f"{time.perf_counter() - started:.1f} s", "")
    return rows, well and bool(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", help="one check")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as site:
        if any((HERE / "wheels").glob("*.whl")) and sys.version_info[:2] == (3, 12):
            unpack(HERE / "wheels", Path(site))
        return report(args)


def report(args: argparse.Namespace) -> int:
    """Runs what is asked for, and writes the table."""
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device\n  fix: run it on a machine with a GPU\n")
        return 5
    about = machine(args.device)

    def show(rows: Rows) -> None:
        sys.stderr.write("  ".join(rows[-1].values()).rstrip() + "\n")
        sys.stderr.flush()
        if args.json:
            args.json.write_text(
                json.dumps({"machine": about, "rows": rows, "passed": None}, indent=2) + "\n"
            )

    rows, well = run(args.device, args.only, show)
    write = sys.stdout.write
    write("\n".join(f"{key}: {value}" for key, value in about.items()) + "\n\n")
    widths = [max([len(r[c]) for r in rows] or [0]) for c in ("check", "what", "value")]
    for r in rows:
        cells = (
            r["check"].ljust(widths[0]),
            r["what"].ljust(widths[1]),
            r["value"].ljust(widths[2]),
            r["bound"],
        )
        write("  ".join(cells).rstrip() + "\n")
    write("all is well\n" if well else "FAILED\n")
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": rows, "passed": well}, indent=2) + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
