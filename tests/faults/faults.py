"""Faults of a server and what comes of them, on the real tritonserver.

Makes the table in docs/reference/triton.md:

    python tests/faults/faults.py [NAME ...] [--write docs/reference/triton.md]

Each fault is a function: its docstring is the table's first column, what it returns the second. It raises
where the outcome is not acceptable: an accepted request lost, one that never ends, something left behind.
The Python that runs it needs the development environment, and python/ of this repository in PYTHONPATH.
Some faults mount file systems in a namespace of their own and need root.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import client_faults
import grpc_faults
import machine_faults
import process_faults
from fault_table import FAULTS, MARKS, table
from setting import Setting

# Each has added its faults to the table.
PARTS = (client_faults, process_faults, machine_faults, grpc_faults)


def main() -> int:
    """Runs the faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAULTS)} (default: all)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table there; all faults must hold"
    )
    args = parser.parse_args()
    rows: dict[str, str] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="enginix-faults-") as directory:
        setting = Setting(Path(directory))
        for name in args.names or FAULTS:
            start = time.monotonic()
            try:
                rows[name] = FAULTS[name](setting)
                print(f"ok    {name} ({time.monotonic() - start:.0f} s): {rows[name]}", flush=True)
            except Exception as e:
                failed += 1
                print(f"FAIL  {name}: {type(e).__name__}: {str(e)[-1500:]}", flush=True)
    if args.write and not failed and not args.names:
        text = args.write.read_text()
        begin, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        args.write.write_text(f"{text[:begin]}\n{table(rows)}\n{text[end:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
