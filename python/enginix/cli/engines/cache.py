"""Engines that enginix runner has built into your cache.

  enginix cache list
  enginix cache prune --keep 2      all but the two most recently used
  enginix cache prune NAME ...      the named ones, by key or by name

An engine that is being built is never removed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from enginix import console
from enginix.cli.option_shapes import add_inner_json, add_number
from enginix.console import format_bytes
from enginix.errors import UsageError
from enginix.kinds.tensorrt.runner import (
    CachedEngine,
    find_cache_directory,
    list_cached_engines,
    prune_engines,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="list engines, the most recently used first")
    removing = verbs.add_parser("prune", help="remove engines")
    removing.add_argument("names", nargs="*", metavar="NAME", help="keys or names (default: by --keep)")
    add_number(removing, "--keep", "keep the N most recently used engines")
    for verb in (listing, removing):
        add_inner_json(verb)


def run(args: argparse.Namespace) -> int:
    if args.verb == "list":
        cached_engines, empty = list_cached_engines(), f"no engines in {find_cache_directory()}"
    else:
        if bool(args.names) == (args.keep is not None) or (args.keep or 0) < 0:
            raise UsageError("pass names, or --keep N", fix="enginix cache prune --keep 2")
        cached_engines, empty = prune_engines(args.keep or 0, args.names), "nothing to remove"
    console.print_result(
        [{**asdict(e), "path": str(e.path)} for e in cached_engines],
        "\n".join(_format_entry(e) for e in cached_engines) or empty,
    )
    return 0


def _format_entry(entry: CachedEngine) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(entry.used))
    what = f"{entry.name:<32} {entry.kind:<9} {entry.target:<28}"
    return f"{entry.key}  {what} {format_bytes(entry.size):>10}  used {day}"
