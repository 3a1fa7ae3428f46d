"""Download what a lock pins into a directory, verified.

  enginix fetch qwen3.lock.json -o models/qwen3

Files come in parallel, each is checked against its sha256, and the directory appears when all are there.
Interrupted or failed, run the same command again: finished files are kept, unfinished ones go on where they
stopped. HF_ENDPOINT names another hub; HF_TOKEN opens gated and private repositories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_number, add_path
from enginix.hub import lock
from enginix.hub.fetch import JOBS, fetch_locked_files
from enginix.wording import count_noun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "lock", "LOCK", "lock file, written by enginix lock")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR")
    add_number(parser, "--jobs", "files at a time (%(default)s)", default=JOBS)


def run(args: argparse.Namespace) -> int:
    pinned = lock.read_lock(args.lock)
    done = fetch_locked_files(pinned, args.output, max(args.jobs, 1))
    console.print_result(
        {
            "directory": str(done.directory),
            "type": pinned.type,
            "repo": pinned.repo,
            "revision": pinned.revision,
            "files": done.files,
            "size": done.size,
            "moved": done.moved,
            "kept": done.kept,
        },
        f"{pinned.repo} at {pinned.revision[:12]}: {count_noun(done.files, 'file')}, "
        f"{console.format_bytes(done.size)} in {done.directory} "
        f"({console.format_bytes(max(done.moved, 0))} fetched, {count_noun(done.kept, 'file')} kept)",
    )
    return 0
