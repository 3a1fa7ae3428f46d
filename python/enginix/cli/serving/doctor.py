"""Looks at this machine: GPU, driver, namespaces, libraries, tritonserver, disk, ports, hub.

  enginix doctor
  enginix doctor --offline --json

Each line is ok, absent (only some stages need it) or failed, with the way to mend it. The checks are those
that the stages run before they begin; nothing is changed. Exit status 1 where one failed.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap

from enginix import console
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--offline", action="store_true", help="do not ask the Hub")


def run(args: argparse.Namespace) -> int:
    """Run the checks and print a line for each."""
    from enginix.diagnosis.machine_checks import run_checks

    results = run_checks(ask_hub=not args.offline)
    width = max(len(result.name) for result in results)
    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for result in results:
        lines.append(f"{result.status:<7} {result.name:<{width}}  {result.detail}")
        if result.fix is not None:
            indent = " " * (width + 10)
            lines.append(f"{indent}needed for: {result.needed_for}")
            for number, line in enumerate(result.fix.splitlines()):
                lines += textwrap.wrap(
                    line.strip() if number else f"fix: {line}",
                    columns,
                    initial_indent=f"{indent}     " if number else indent,
                    subsequent_indent=f"{indent}     ",
                    # A command is pasted: its words stay whole.
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    failed = sum(result.status == "failed" for result in results)
    console.print_result(
        {"ok": not failed, "checks": [result.as_json() for result in results]},
        "\n".join(lines),
        as_json=args.json,
    )
    return EXIT_CHECK_FAILED if failed else EXIT_OK
