"""Exports a model for TensorRT Edge-LLM: NVIDIA's exporter on a CPU, and every weight accounted for.

Reads a Hugging Face model, plain or quantized by ModelOpt (FP8, NVFP4, W4A16_AWQ, W8A8_SQ_PER_CHANNEL),
runs tensorrt-edgellm-export with no network and no GPU, and checks what it wrote before the directory
exists: files, one attention plugin a layer, quantization nodes, tokenizer and chat template, and each
tensor of the model by its values. Then the gate export executes the graph, and the one that builder
"direct" defines, and holds their logits to those that transformers computes of the model. The exporter
reports success for a model with tensors missing and for a graph of another function; this command does not.

  enginix edgellm-export ./tiny-qwen3 -o ./export
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_output, add_path
from enginix.kinds.edgellm import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "model", "MODEL", "Hugging Face model, plain or quantized")
    add_output(parser, "DIR", "export to write", required=True)
    parser.add_argument("--name", help="name of the export (default: the model's)")
    add_path(parser, "--exporter", "FILE", "NVIDIA's exporter (default: beside this Python)")
    options.add_flags(parser, "export")


def run(args: argparse.Namespace) -> int:
    flags = options.collect_given_options(args, "export")
    from enginix.kinds.edgellm.export import export_model

    name, exporter = args.name, args.exporter
    export_manifest = export_model(args.model, args.output, name=name, exporter=exporter, flags=flags)
    console.print_notes(export_manifest.results["notes"])
    weights, direct = export_manifest.results["weights"], export_manifest.results["directGate"]
    if "refused" in direct:
        console.print_message(f"note: no engine by builder direct, builder onnx alone: {direct['refused']}")
    console.print_result(
        {"export": str(args.output), "name": export_manifest.name, "results": export_manifest.results},
        f"{args.output}: {export_manifest.name}, {weights['tensors']} tensors accounted for,"
        f" {export_manifest.results['attentionPlugins']} attention plugins, gate export passed: "
        f"{'the exported graph alone' if 'refused' in direct else 'both graphs'}",
    )
    return 0
