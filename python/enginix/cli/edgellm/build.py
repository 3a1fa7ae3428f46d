"""Builds a TensorRT Edge-LLM engine on the target's GPU, from an export and the model it was made from.

Builder "direct" runs tensorrt-edgellm-build on the model, and gives what enginix edgellm-serve serves.
Builder "onnx" runs llm_build, from Edge-LLM's C++ sources, on the export. Both need a runtime with
TensorRT: --python names its Python, with the wheel tensorrt-edgellm in it. The two build different graphs;
one that the export's gate refused is not built, and the manifest says which was.

  enginix edgellm-build ./export --model ./tiny-qwen3 --target rtx-5090 --max-input-len 1024 -o ./engine
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from enginix.cli.built_engine import print_built_engine
from enginix.cli.option_shapes import add_output, add_path, fill_options
from enginix.kinds.edgellm import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "export", "EXPORT", "output of enginix edgellm-export")
    add_path(parser, "--model", "DIR", "the model that was exported", required=True)
    parser.add_argument("--target", required=True, metavar="GPU", help="GPU (enginix target)")
    add_output(parser, "DIR", "engine to write", required=True)
    parser.add_argument("--name", help="name of the engine (default: the export's)")
    parser.add_argument(
        "--builder", choices=("direct", "onnx"), default="direct", help="builder to run (default: direct)"
    )
    add_path(parser, "--python", "FILE", "Python with the wheel and TensorRT")
    add_path(parser, "--llm-build", "FILE", "NVIDIA's C++ builder, for onnx")
    add_path(parser, "--plugin", "FILE", "plugin library in place of the wheel's")
    add_path(parser, "--driver", "DIR", "the GPU driver (default: the machine's)")
    parser.add_argument(
        "--plan", type=_parse_object, metavar="JSON", help="predicted memory, recorded in the manifest"
    )
    options.add_flags(parser, "build")


def _parse_object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"not JSON: {e}") from e
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return parsed


def run(args: argparse.Namespace) -> int:
    limits = options.collect_given_options(args, "build")
    from enginix.kinds.edgellm.build import EdgellmBuildOptions, build_edgellm_engine

    build_options = fill_options(EdgellmBuildOptions, args, limits=limits)
    engine_manifest = build_edgellm_engine(args.export, args.model, args.output, build_options)
    target, results = engine_manifest.target, engine_manifest.results
    more = {"target": target, "graph": results["graph"], "exportGate": results["exportGate"]}
    text = f"SM {target['sm']}; graph: {results['graph']}"
    print_built_engine(args.output, engine_manifest, text, **more)
    return 0
