"""Looks at this machine: GPU, driver, namespaces, libraries, tritonserver, disk, ports, hub.

  enginix doctor
  enginix doctor --offline --json

Each line is ok, absent (only some stages need it) or failed, with the way to mend it. The checks are those
that the stages run before they begin; nothing is changed. Exit status 1 where one failed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from enginix import console
from enginix.cli.option_shapes import add_flag
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK

INDENT = " " * 8  # of what is said below a check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--offline", "do not ask the Hub")


def run(args: argparse.Namespace) -> int:
    from enginix.diagnosis.machine_checks import run_checks

    results = run_checks(ask_hub=not args.offline)
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        lines += _fit_line(f"{result.status:<7} {result.name:<{width}}  ", result.detail)
        if result.fix is not None:
            lines += _fit_line(f"{INDENT}needed for: ", result.needed_for)
            for number, line in enumerate(result.fix.splitlines()):
                lines += _fit_line(f"{INDENT}{'     ' if number else 'fix: '}", line.strip())
    failed = sum(result.status == "failed" for result in results)
    console.print_result(
        {"ok": not failed, "checks": [asdict(result) for result in results]}, "\n".join(lines)
    )
    return EXIT_CHECK_FAILED if failed else EXIT_OK


def _fit_line(head: str, text: str) -> list[str]:
    """Return the lines of a text behind its head, in the terminal's width; words and paths stay whole."""
    columns = console.find_table_width()
    if columns is None:
        return [head + text]
    lines, line, is_empty = [], head, True
    for word in text.split():
        if len(line) + len(word) + (not is_empty) > columns:
            lines.append(line.rstrip())
            room = columns - len(word)
            indent = len(head) if len(head) <= room else max(0, min(len(INDENT), room))
            line, is_empty = " " * indent, True
        line, is_empty = line + ("" if is_empty else " ") + word, False
    return [*lines, line]
