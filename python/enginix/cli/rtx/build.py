"""Builds an engine by TensorRT for RTX, without a GPU, from a checkpoint and the model it was made from.

Before NVIDIA's builder gets the network, the gate "network" executes it on the CPU and compares its logits
with the model's. A checkpoint without a manifest is first compared tensor by tensor (gate "weights"). No
build executes the engine itself: that takes a GPU of its targets.

  enginix rtx-build ./checkpoint --model ./tiny-qwen3 -o ./engine
  enginix rtx-build ./checkpoint --model ./model --sm 89 --max-batch-size 4 --max-seq-len 8192 -o ./engine
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.built_engine import print_built_engine
from enginix.cli.option_shapes import add_number, add_output, add_path
from enginix.tables import load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    limits = load_table("rtx")["limits"]
    add_path(parser, "checkpoint", "CHECKPOINT", "output of enginix convert")
    add_path(
        parser, "--model", "DIR", "the Hugging Face model that the checkpoint was made from", required=True
    )
    add_output(parser, "DIR", "engine to write", required=True)
    parser.add_argument("--name", help="name of the engine (default: the model's)")
    parser.add_argument(
        "--sm",
        type=int,
        action="append",
        metavar="N",
        help="compute capability of a target, without its dot; repeatable (default: all of the format)",
    )
    for flag, name, what in (
        ("--max-batch-size", "maxBatchSize", "sequences that are computed together"),
        ("--max-seq-len", "maxSeqLen", "tokens of a sequence, prompt and answer together"),
        ("--step-tokens", "stepTokens", "tokens of each sequence in one step"),
    ):
        default = limits[name]["default"]
        if name == "maxSeqLen":
            default = f"{default}, or the model's context"
        add_number(parser, flag, f"{what} (default: {default})", dest=name)


def run(args: argparse.Namespace) -> int:
    from enginix.kinds.rtx.engine_build import RtxBuildOptions, build_rtx_engine

    options = RtxBuildOptions(
        name=args.name,
        targets=tuple(args.sm) if args.sm else None,
        max_batch_size=args.maxBatchSize,
        max_seq_len=args.maxSeqLen,
        step_tokens=args.stepTokens,
    )
    engine_manifest, outcomes = build_rtx_engine(args.checkpoint, args.model, args.output, options)
    for outcome in outcomes:
        console.print_message(f"gate {outcome.gate}: passed, {outcome.summary}")
    sms = ", ".join(map(str, engine_manifest.target["sms"]))
    console.print_message("note: built and not executed: no build has a GPU")
    more = {"target": engine_manifest.target, "gates": engine_manifest.results["gates"]}
    print_built_engine(args.output, engine_manifest, f"SM {sms}", **more)
    return 0
