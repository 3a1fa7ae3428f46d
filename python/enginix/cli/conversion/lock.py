"""Pin a Hub repository: commit, licence, and path, size and sha256 of each file. No weight is downloaded.

  enginix lock nvidia/Qwen3-32B-NVFP4 -o qwen3-32b-nvfp4.lock.json
  enginix lock --dataset owner/name -o texts.lock.json
  enginix lock --check  qwen3-32b-nvfp4.lock.json     exit 1 and a diff when upstream moved
  enginix lock --update qwen3-32b-nvfp4.lock.json     shows what moves, and writes it

By default it takes safetensors and the files that reading them needs; of a dataset JSONL and text, which
calibration reads. Pickle formats are refused; Python files of the repository are pinned only with
--remote-code. --include replaces the default patterns, --exclude removes; both match the whole path,
* crosses directories. The lock records these options, so that --check and --update use the same ones.
HF_ENDPOINT names another hub; HF_TOKEN opens gated repositories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_flag, add_output, add_path
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError
from enginix.files import write_text
from enginix.hub import lock as locks
from enginix.hub.hub_urls import choose_revision, parse_hub_source
from enginix.hub.lock import Lock, RepoType, Selection, parse_lock
from enginix.hub.locking import NewLock, count_new_bytes, list_lock_differences, make_lock
from enginix.wording import count_noun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", nargs="?", metavar="REPO", help="owner/name, or its address on the Hub")
    add_flag(parser, "--dataset", "REPO is a dataset")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (main)")
    add_output(parser, "FILE", "lock file to write")
    parser.add_argument("--include", action="append", metavar="PATTERN", help="repeatable")
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="repeatable")
    add_flag(parser, "--remote-code", "pin the repository's Python files too")
    add_path(parser, "--check", "LOCK", "compare a lock with upstream")
    add_path(parser, "--update", "LOCK", "show what moves, and write the lock")


def run(args: argparse.Namespace) -> int:
    given = [w for w in (args.repo, args.check, args.update) if w is not None]
    if len(given) != 1:
        raise UsageError("pass either REPO, --check LOCK or --update LOCK", fix="see enginix lock --help")
    if args.check is not None:
        return _check_lock(args)
    if args.update is not None:
        return _update_lock(args)
    if args.output is None:
        raise UsageError("no output file for the lock", where=args.repo, fix="add -o FILE")
    source = parse_hub_source(args.repo)
    args.revision = choose_revision(source, args.revision)
    type_: RepoType = "dataset" if args.dataset else source.type
    present = _read_present_lock(args.output, source.name, type_)
    upstream = make_lock(source.name, _merge_selection(args, Selection()), type_)
    if present is not None and (lines := list_lock_differences(present, upstream.lock)):
        raise UsageError(
            f"pins {present.repo} at {present.revision[:12]}, which upstream no longer has like that, "
            f"or with other options: {lines[0]}",
            where=args.output,
            fix=f"enginix lock --update {args.output}, or choose another file",
        )
    _write_lock(args.output, upstream.lock)
    console.print_notes(upstream.notes)
    lock = upstream.lock
    console.print_result(
        _summarize_lock(lock) | {"lock": str(args.output)},
        f"{lock.repo} at {lock.revision[:12]}: {count_noun(len(lock.files), 'file')}, "
        f"{console.format_bytes(lock.size)}, licence {lock.license or 'not stated'} → {args.output}",
    )
    return EXIT_OK


def _check_lock(args: argparse.Namespace) -> int:
    if args.output is not None:
        raise UsageError("--check writes nothing", where="-o", fix="use --update to write")
    old, upstream, lines = _compare_upstream(args, args.check)
    text = "\n".join([f"{old.repo}: upstream moved", *lines]) if lines else f"{old.repo}: as upstream has it"
    console.print_result(_summarize_lock(upstream.lock) | {"drift": lines}, text)
    return EXIT_CHECK_FAILED if lines else EXIT_OK


def _update_lock(args: argparse.Namespace) -> int:
    old, upstream, lines = _compare_upstream(args, args.update)
    if args.output is not None:
        _read_present_lock(args.output, old.repo, old.type)
    console.print_notes(upstream.notes)
    target = args.output or args.update
    if lines or args.output is not None:
        _write_lock(target, upstream.lock)
    move = count_new_bytes(old, upstream.lock)
    amount = f"{console.format_bytes(move)} of {console.format_bytes(upstream.lock.size)}"
    head = f"{old.repo}: {amount} to fetch → {target}"
    console.print_result(
        _summarize_lock(upstream.lock) | {"moved": lines, "bytesToFetch": move, "lock": str(target)},
        "\n".join([head, *lines]) if lines else f"{old.repo}: as upstream has it",
    )
    return EXIT_OK


def _compare_upstream(args: argparse.Namespace, path: Path) -> tuple[Lock, NewLock, list[str]]:
    old = locks.read_lock(path)
    if args.dataset and old.type != "dataset":
        raise UsageError("is the lock of a model", where=path, fix="leave --dataset out")
    upstream = make_lock(old.repo, _merge_selection(args, old.select), old.type)
    return old, upstream, list_lock_differences(old, upstream.lock)


def _merge_selection(args: argparse.Namespace, base: Selection) -> Selection:
    return Selection(
        revision=base.revision if args.revision is None else args.revision,
        include=base.include if args.include is None else tuple(args.include),
        exclude=base.exclude if args.exclude is None else tuple(args.exclude),
        remote_code=base.remote_code or args.remote_code,
    )


def _read_present_lock(path: Path, repo: str, type_: RepoType) -> Lock | None:
    """Return the lock that is there already; refuse one of another repository."""
    if not path.is_file():
        return None
    present = locks.read_lock(path)
    if (present.type, present.repo) != (type_, repo):
        raise UsageError(
            f"pins the {present.type} {present.repo}, not the {type_} {repo}",
            where=path,
            fix="choose another file for -o, or remove this one",
        )
    return present


def _write_lock(path: Path, lock: Lock) -> None:
    text = lock.dump()
    # Parse the text before it is written: only a readable lock is written.
    parse_lock(text, str(path))
    if path.is_dir():
        raise UsageError("is a directory", where=path, fix="pass a file to -o")
    write_text(path, text)


def _summarize_lock(lock: Lock) -> dict[str, object]:
    return {
        "type": lock.type,
        "repo": lock.repo,
        "revision": lock.revision,
        "license": lock.license,
        "gated": lock.gated,
        "files": len(lock.files),
        "size": lock.size,
    }
