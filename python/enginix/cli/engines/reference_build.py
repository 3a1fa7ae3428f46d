"""``enginix build --kind reference``."""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.built_engine import print_built_engine
from enginix.cli.engines import trtllm_build
from enginix.cli.option_shapes import fill_options
from enginix.errors import UsageError
from enginix.optional_libraries import pause_garbage_collector


def run(args: argparse.Namespace) -> int:
    if args.checkpoint is None:
        raise UsageError("CHECKPOINT is needed", fix="pass the output of enginix convert")
    if unread := trtllm_build.list_given_options(args):
        raise UsageError(
            f"kind reference reads no {', '.join(unread)}: its limits are the checkpoint's own",
            fix="leave it out, or take kind tensorrt or llmapi",
        )
    if args.tolerance is not None and (args.no_gates or not 0 < args.tolerance < float("inf")):
        raise UsageError(
            "--tolerance with --no-gates" if args.no_gates else f"--tolerance is {args.tolerance}",
            fix="pass a positive number, with the gates on",
        )
    for option in ("gates", "questions"):
        if args.no_gates and getattr(args, option) is not None:
            raise UsageError(f"--{option} with --no-gates", fix="one of them")
    with pause_garbage_collector():
        from enginix.evaluation.judgement.judge import parse_gates
        from enginix.kinds.reference.reference_build import ReferenceBuildOptions, build_reference_engine

    gates = None if args.gates is None else parse_gates(args.gates)
    options = fill_options(ReferenceBuildOptions, args, gated=not args.no_gates, gates=gates)
    engine_manifest, outcomes = build_reference_engine(args.checkpoint, args.model, args.output, options)
    for outcome in outcomes:
        console.print_message(f"gate {outcome.gate}: passed, {outcome.summary}")
    if not outcomes:
        console.print_message("note: not gated")
    text, gates = "gated" if outcomes else "not gated", engine_manifest.results["gates"]
    print_built_engine(args.output, engine_manifest, text, gates=gates)
    return 0
