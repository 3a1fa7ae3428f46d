"""Takes Triton's own OpenAI frontend out of an image, ready to be started by enginix serve.

  enginix openai-frontend --rootfs DIR --model-runtime trtllm-1.2.1 -o FRONTEND
  enginix serve REPOSITORY --rootfs DIR --openai-frontend FRONTEND --openai-port 9000

NVIDIA's TensorRT-LLM images have the frontend's source and, as wheels, Triton's Python bindings, which its
README installs with pip in the running container. Here the wheels are unpacked once; what the frontend
imports besides is in the image, because tensorrt_llm requires it, and is looked for. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--rootfs", type=Path, required=True, metavar="DIR", help="root file system of the runtime's image"
    )
    parser.add_argument("--model-runtime", required=True, metavar="NAME", help="the runtime")
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="python/openai of Triton's sources, if the image has none"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the result")


def run(args: argparse.Namespace) -> int:
    """Unpacks."""
    from enginix.runtime import table as runtimes
    from enginix.serve.frontend import prepare

    versions = prepare(args.rootfs, runtimes.find(args.model_runtime), args.output, args.source)
    text = "\n".join(f"{name} {version}" for name, version in versions.items())
    console.result(versions, text, as_json=args.json)
    return 0
