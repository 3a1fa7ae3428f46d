"""Download a whole commit of a Hub repository, as a git-lfs clone without .git has it.

  enginix fetch-tree nvidia/Qwen3-32B-NVFP4 40HEX -o qwen3

All files, .gitattributes included, each checked against the Hub's sha256 (git's own hash for small ones).
It is what mkHfModel { repo; revision; hash; } runs: its hash is that of the clone. With a lock, prefer
`enginix fetch`: it takes only what is needed, and a failed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_number
from enginix.hub.fetch import JOBS
from enginix.hub.tree import fetch_tree
from enginix.wording import count_noun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO", help="owner/name")
    parser.add_argument("revision", metavar="REVISION", help="commit, 40 hex digits")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR")
    add_number(parser, "--jobs", "files at a time (%(default)s)", default=JOBS)


def run(args: argparse.Namespace) -> int:
    done = fetch_tree(args.repo, args.revision, args.output, max(args.jobs, 1))
    console.print_result(
        {"directory": str(done.directory), "files": done.files, "size": done.size, "moved": done.moved},
        f"{args.repo} at {args.revision[:12]}: {count_noun(done.files, 'file')}, "
        f"{console.format_bytes(done.size)} in {done.directory}, each with the Hub's hash",
    )
    return 0
