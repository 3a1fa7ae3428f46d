"""Runs the GPU checks without pytest, prints a table with the GPU's name, exits 1 where something is wrong.

    python3 tests/gpu/run.py [--device cuda] [--only CHECK] [--json FILE]

A part whose imports are missing is skipped, with the reason in the table. ``--device cpu`` tries the checks
themselves where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python")]
# Module → what its checks are about; each has CHECKS.
MODULES = {"reference_checks": "reference executor", "quantize_checks": "quantization by ModelOpt"}


def machine(device: str) -> dict[str, str]:
    """What the figures belong to."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{properties.name}, SM {properties.major}{properties.minor}"
        found["cuda"] = str(torch.version.cuda)
    return found


def run(device: str, only: str | None) -> tuple[list[dict[str, Any]], bool]:
    """Rows of the report, and whether all went well."""
    rows: list[dict[str, Any]] = []
    well = True
    for name, title in MODULES.items():
        try:
            checks = importlib.import_module(name).CHECKS
        except ImportError as e:
            rows.append({"check": title, "what": "all", "value": f"skipped: {e}", "bound": ""})
            continue
        for check, function in checks.items():
            if only not in (None, check):
                continue
            started = time.perf_counter()
            try:
                with tempfile.TemporaryDirectory() as work:
                    found = [
                        {"check": check, "what": r.what, "value": r.value, "bound": r.bound}
                        for r in function(device, Path(work))
                    ]
            except Exception as e:
                well = False
                found = [{"check": check, "what": "FAILED", "value": f"{type(e).__name__}: {e}", "bound": ""}]
            rows += found
            seconds = f"{time.perf_counter() - started:.1f} s"
            rows.append({"check": check, "what": "took", "value": seconds, "bound": ""})
    return rows, well and bool(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", help="one check")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device\n  fix: run it on a machine with a GPU\n")
        return 5
    about = machine(args.device)
    rows, well = run(args.device, args.only)
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
