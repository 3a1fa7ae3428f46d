"""Converts a Hugging Face model to a TensorRT-LLM checkpoint: config.json and one file a rank.

Sizes, names and shapes are checked before a weight is read; weights stream, so that memory stays small
however large the model is. The output directory appears whole, or not at all.

  enginix convert ./tiny-qwen3 -o ./checkpoint
  enginix convert ./llama-70b -o ./checkpoint --tensor-parallel 4 --dtype bfloat16
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_number, add_output, add_path, fill_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "model", "MODEL", "directory with config.json and safetensors")
    add_output(parser, "DIR", "checkpoint to write", required=True)
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of everything unquantized (default: the model's; float32 becomes float16)",
    )
    for kind, what in (("tensor", "each matrix"), ("pipeline", "the layers"), ("expert", "the experts")):
        add_number(parser, f"--{kind}-parallel", f"ranks that share {what} (default: 1)", default=1)
    add_number(
        parser,
        "--gpus-per-node",
        "GPUs of each serving node: TensorRT-LLM runs a rank on GPU rank modulo N (default: 8)",
    )
    parser.add_argument(
        "--converter",
        choices=("enginix", "modelopt", "tensorrt_llm"),
        default="enginix",
        help="converter to run (default: enginix)",
    )
    parser.add_argument(
        "--kind",
        choices=("tensorrt", "reference"),
        help="kind of engine the checkpoint is for, which must take the model (default: tensorrt, which has "
        "no pipeline for Phi-3; a model that it does not take is converted with a note)",
    )
    parser.add_argument(
        "--parallel-embedding",
        choices=("vocabulary", "hidden"),
        help="cut the embedding over tensor-parallel ranks, too (default: whole on each)",
    )
    parser.add_argument(
        "--nvfp4-form",
        choices=("auto", "trtllm", "modelopt"),
        default="auto",
        help="tensor layout: TensorRT-LLM's own, or ModelOpt's, which it converts and pads on loading "
        "(default: its own, where the scale tiles fit)",
    )
    parser.add_argument(
        "--quantize",
        choices=("FP8_PER_CHANNEL_PER_TOKEN",),
        help="quantize an unquantized model while converting it",
    )
    parser.add_argument(
        "--kv-cache", choices=("FP8",), help="FP8 KV cache for a model that does not ask for it (scales 1.0)"
    )

    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which model of its family it is, where config.json does not tell: v1_7b, v1_13b, v2_7b, v2_13b "
        "(Baichuan), chatglm2, chatglm3, glm-4 (ChatGLM)",
    )


def run(args: argparse.Namespace) -> int:
    from enginix.checkpoint.convert import ConvertOptions, convert_model
    from enginix.checkpoint.mapping import CheckpointMapping, default_gpus_per_node
    from enginix.model.engine_classes import explain_no_engine_class

    each = default_gpus_per_node() if args.gpus_per_node is None else args.gpus_per_node
    options = fill_options(
        ConvertOptions,
        args,
        mapping=CheckpointMapping(args.tensor_parallel, args.pipeline_parallel, args.expert_parallel, each),
        parallel_embedding=args.parallel_embedding is not None,
        embedding_sharding_dim=int(args.parallel_embedding == "hidden"),
        kind=args.kind or "tensorrt",
    )
    world = options.mapping.world_size
    if args.converter != "enginix":
        from enginix.checkpoint import external_converters

        run = (
            external_converters.convert_with_modelopt
            if args.converter == "modelopt"
            else external_converters.convert_with_tensorrt_llm
        )
        architecture = run(args.model, args.output, options)
        console.print_result(
            {"checkpoint": str(args.output), "ranks": world, "notes": []},
            f"{args.output}: {architecture}, {world} rank{'s' * (world > 1)}, by {args.converter}",
        )
        return 0
    if args.kind is not None:
        from enginix.kinds.planning.checkpoint_refusal import require_kind_support

        require_kind_support(args.kind, args.model, args.variant, args.quantize)
    done = convert_model(args.model, args.output, options)
    # A checkpoint without a kind may be for another release of TensorRT-LLM.
    no_class = None if args.kind is not None else explain_no_engine_class(done.model.architecture)
    notes = [*done.notes, *([no_class] if no_class else [])]
    console.print_notes(notes)
    console.print_result(
        {"checkpoint": str(args.output), "ranks": world, "notes": notes},
        f"{args.output}: {done.model.architecture}, {world} rank{'s' * (world > 1)}",
    )
    return 0
