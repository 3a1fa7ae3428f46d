"""Pin a Hub repository: commit, licence, and path, size and sha256 of each file. No weight is downloaded.

  enginix lock nvidia/Qwen3-32B-NVFP4 -o qwen3-32b-nvfp4.lock.json
  enginix lock --dataset owner/name -o texts.lock.json
  enginix lock --check  qwen3-32b-nvfp4.lock.json     exit 1 and a diff when upstream moved
  enginix lock --update qwen3-32b-nvfp4.lock.json     shows what moves, and writes it

By default it takes safetensors and the files that reading them needs; of a dataset JSONL and text, which
calibration reads. Pickle formats are refused; Python files of the repository are pinned only with
--remote-code. --include replaces the default patterns, --exclude removes; both match the whole path,
* crosses directories. What was asked for is kept in the lock, so that --check and --update ask for the same.
HF_ENDPOINT names another hub; HF_TOKEN opens gated repositories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.errors import EXIT_NO, EXIT_OK, MachineError, UsageError
from enginix.files import write_text
from enginix.hub import lock as locks
from enginix.hub.lock import Lock, Selection
from enginix.hub.locking import Made, differences, make, to_move
from enginix.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", nargs="?", metavar="REPO", help="owner/name")
    parser.add_argument("--dataset", action="store_true", help="REPO is a dataset")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (main)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the lock goes")
    parser.add_argument("--include", action="append", metavar="PATTERN", help="repeatable")
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="repeatable")
    parser.add_argument("--remote-code", action="store_true", help="pin the repository's Python files too")
    parser.add_argument("--check", type=Path, metavar="LOCK", help="compare a lock with upstream")
    parser.add_argument("--update", type=Path, metavar="LOCK", help="show what moves, and write the lock")


def run(args: argparse.Namespace) -> int:
    given = [w for w in (args.repo, args.check, args.update) if w is not None]
    if len(given) != 1:
        raise UsageError("pass either REPO, --check LOCK or --update LOCK", fix="see enginix lock --help")
    if args.check is not None:
        return _check(args)
    if args.update is not None:
        return _update(args)
    if args.output is None:
        raise UsageError("where does the lock go?", where=args.repo, fix="add -o FILE")
    made = make(args.repo, _selection(args, Selection()), "dataset" if args.dataset else "model")
    _write(args.output, made.lock)
    _say(made)
    lock = made.lock
    console.result(
        _summary(lock) | {"lock": str(args.output)},
        f"{lock.repo} at {lock.revision[:12]}: {counted(len(lock.files), 'file')}, "
        f"{console.human_bytes(lock.size)}, licence {lock.license or 'not stated'} → {args.output}",
        as_json=args.json,
    )
    return EXIT_OK


def _check(args: argparse.Namespace) -> int:
    if args.output is not None:
        raise UsageError("--check writes nothing", where="-o", fix="use --update to write")
    old, made, lines = _compare(args, args.check)
    text = "\n".join([f"{old.repo}: upstream moved", *lines]) if lines else f"{old.repo}: as upstream has it"
    console.result(_summary(made.lock) | {"drift": lines}, text, as_json=args.json)
    return EXIT_NO if lines else EXIT_OK


def _update(args: argparse.Namespace) -> int:
    old, made, lines = _compare(args, args.update)
    _say(made)
    target = args.output or args.update
    if lines or args.output is not None:
        _write(target, made.lock)
    move = to_move(old, made.lock)
    amount = f"{console.human_bytes(move)} of {console.human_bytes(made.lock.size)}"
    head = f"{old.repo}: {amount} to fetch → {target}"
    console.result(
        _summary(made.lock) | {"moved": lines, "bytesToFetch": move, "lock": str(target)},
        "\n".join([head, *lines]) if lines else f"{old.repo}: as upstream has it",
        as_json=args.json,
    )
    return EXIT_OK


def _compare(args: argparse.Namespace, path: Path) -> tuple[Lock, Made, list[str]]:
    old = locks.read(path)
    if args.dataset and old.type != "dataset":
        raise UsageError("is the lock of a model", where=str(path), fix="leave --dataset out")
    made = make(old.repo, _selection(args, old.select), old.type)
    return old, made, differences(old, made.lock)


def _selection(args: argparse.Namespace, base: Selection) -> Selection:
    return Selection(
        revision=base.revision if args.revision is None else args.revision,
        include=base.include if args.include is None else tuple(args.include),
        exclude=base.exclude if args.exclude is None else tuple(args.exclude),
        remote_code=base.remote_code or args.remote_code,
    )


def _write(path: Path, lock: Lock) -> None:
    text = lock.dump()
    # What is written is what can be read: the parser has the last word.
    Lock.parse(text, str(path))
    if path.is_dir():
        raise MachineError("is a directory", where=str(path), fix="pass a file to -o")
    write_text(path, text)


def _say(made: Made) -> None:
    for note in made.notes:
        console.say(f"note: {note}")


def _summary(lock: Lock) -> dict[str, object]:
    return {
        "type": lock.type,
        "repo": lock.repo,
        "revision": lock.revision,
        "license": lock.license,
        "gated": lock.gated,
        "files": len(lock.files),
        "size": lock.size,
    }
