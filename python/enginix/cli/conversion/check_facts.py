"""Compares the facts about a model in a lock with the configuration that the lock pins.

  enginix check-facts FACTS.json --repo OWNER/NAME --config config.json

FACTS.json is the lock's object "model". This is what a build of mkHfModel runs; `enginix fetch` compares by
itself. Exit status 3: a value differs.
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_path
from enginix.errors import LockError, ModelError
from enginix.hub import model_metadata
from enginix.model.jsonfile import parse_object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "facts", "FACTS", "the lock's facts, as JSON")
    parser.add_argument("--repo", required=True, metavar="REPO", help="owner/name, for errors")
    add_path(parser, "--config", "FILE", "the pinned config.json")
    add_path(parser, "--modelopt", "FILE", "the pinned hf_quant_config.json")


def run(args: argparse.Namespace) -> int:
    given = {model_metadata.CONFIG: args.config, model_metadata.MODELOPT: args.modelopt}
    try:
        files = {name: path.read_bytes() for name, path in given.items() if path is not None}
        facts = parse_object(args.facts.read_bytes(), str(args.facts))
    except OSError as e:
        raise ModelError(f"cannot be read: {e.strerror}", where=e.filename, fix="pass a file") from e
    except ModelError as e:
        raise LockError(e.what, where=e.where, fix="pass the lock's object model") from e
    model_metadata.require_metadata(facts, files, args.repo)
    console.print_result({"repo": args.repo, "facts": len(facts)}, f"{args.repo}: facts as configured")
    return 0
