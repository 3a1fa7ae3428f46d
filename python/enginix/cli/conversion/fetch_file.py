"""Download one file of a Hub repository at a commit, and check it before it appears.

  enginix fetch-file Qwen/Qwen3-0.6B 40HEX model.safetensors --sha256 HEX --size N -o model.safetensors

Written beside the output and renamed, so the output is whole or absent. It works without a home directory:
this is what each fixed-output derivation of mkHfModel and mkHfDataset runs. HF_ENDPOINT names another hub;
HF_TOKEN opens gated and private repositories and is sent to the hub's own host only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_flag, add_number
from enginix.errors import UsageError
from enginix.hub import paths
from enginix.hub.fetch import fetch_file
from enginix.hub.lock import LARGEST_FILE, REPO, SHA256, format_address
from enginix.hub.transfer import FileDigest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO", help="owner/name")
    add_flag(parser, "--dataset", "REPO is a dataset")
    parser.add_argument("revision", metavar="REVISION", help="commit, 40 hex digits")
    parser.add_argument("path", metavar="PATH", help="file of the repository")
    parser.add_argument("--sha256", required=True, metavar="HEX", help="expected sha256 of the content")
    add_number(parser, "--size", "bytes", required=True)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    repo = format_address(args.repo, "dataset" if args.dataset else "model")
    if not REPO.fullmatch(args.repo) or (args.dataset and "/" not in args.repo):
        raise UsageError("not a Hub repository name", where=args.repo, fix="pass owner/name")
    if why := paths.find_path_problem(args.path):
        raise UsageError(f"the path {why}", where=ascii(args.path), fix="pass the path as the lock has it")
    if paths.is_pickle(args.path):
        raise UsageError(
            "a pickle format, which can run code when it is read",
            where=ascii(args.path),
            fix="leave it out of the lock; take safetensors",
        )
    if not SHA256.fullmatch(args.sha256):
        raise UsageError(
            "--sha256 is not 64 lower-case hex digits", where=args.path, fix="copy it from the lock"
        )
    if not 0 <= args.size <= LARGEST_FILE:
        raise UsageError("--size is not a number of bytes", where=args.path, fix="copy it from the lock")
    expected_file = FileDigest(args.path, args.size, "sha256", args.sha256)
    done = fetch_file(repo, args.revision, expected_file, args.output)
    console.print_result(
        {"file": str(done.directory), "size": done.size, "sha256": args.sha256, "moved": done.moved},
        f"{args.path}: {console.format_bytes(done.size)}, sha256 as pinned",
    )
    return 0
