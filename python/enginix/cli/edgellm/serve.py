"""Serves a TensorRT Edge-LLM engine over OpenAI's interface: tensorrt-edgellm-serve, on loopback.

The engine is linked into the server's cache, where it looks, so nothing is built at start. The API key is
read from a file and appears on no command line. Any other address than loopback needs a key.

Before anything starts, the engine is compared with the GPU and with the wheel; what does not fit is
refused, with what to rebuild.

  enginix edgellm-serve ./engine --model ./tiny-qwen3 --state ./state --api-key-file ./key
"""

from __future__ import annotations

import argparse
import os

from enginix import console, manifest
from enginix.cli.option_shapes import add_flag, add_path
from enginix.kinds.edgellm import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "engine", "ENGINE", "output of enginix edgellm-build")
    add_path(parser, "--model", "DIR", "the model that it was built from", required=True)
    add_path(parser, "--state", "DIR", "directory for the server's cache", required=True)
    parser.add_argument("--host", default="127.0.0.1", help="listen address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="listen port (default: 8000)")
    add_path(parser, "--api-key-file", "FILE", "file with the key that clients send")
    add_path(parser, "--python", "FILE", "Python with the wheel and TensorRT")
    add_path(parser, "--driver", "DIR", "the GPU driver's root (default: found)")
    add_flag(parser, "--dry-run", "print the command instead of starting it")
    options.add_flags(parser, "serve")


def run(args: argparse.Namespace) -> int:
    flags = options.collect_given_options(args, "serve")
    from enginix.beside import end_if_files_change
    from enginix.kinds.edgellm.serve import prepare_server

    command = prepare_server(
        args.engine,
        args.model,
        args.state,
        host=args.host,
        port=args.port,
        key_file=args.api_key_file,
        python=args.python,
        driver=args.driver,
        flags=flags,
    )
    if args.dry_run:
        console.print_result({"command": list(command.words)}, " ".join(command.words))
        return 0
    engine_manifest = manifest.read_manifest(args.engine)
    console.print_notes([manifest.explain_ungated(engine_manifest)])
    # Manifests of earlier versions do not say.
    if "graph" in engine_manifest.results:
        console.print_message(f"graph: {engine_manifest.results['graph']}")
    console.print_message(f"serving {args.engine} on http://{args.host}:{args.port}")
    end_if_files_change(command.watch, args.host, args.port)
    os.execve(command.words[0], list(command.words), dict(command.environment))
