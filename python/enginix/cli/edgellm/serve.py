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
from pathlib import Path

from enginix import console, manifest
from enginix.kinds.edgellm import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="output of enginix edgellm-build")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="the model that it was built from"
    )
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="directory for the server's cache"
    )
    parser.add_argument("--host", default="127.0.0.1", help="listen address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="listen port (default: 8000)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the key that clients send"
    )
    parser.add_argument("--python", type=Path, metavar="FILE", help="Python with the wheel and TensorRT")
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")
    parser.add_argument("--dry-run", action="store_true", help="print the command instead of starting it")
    options.add_flags(parser, "serve")


def run(args: argparse.Namespace) -> int:
    flags = options.collect_given_options(args, "serve")
    from enginix.beside import end_if_files_change
    from enginix.kinds.edgellm.serve import EdgellmServeOptions, prepare_server

    serve_options = EdgellmServeOptions(
        args.state, args.host, args.port, args.api_key_file, args.python, args.driver, flags
    )
    command = prepare_server(args.engine, args.model, serve_options)
    if args.dry_run:
        console.print_result({"command": list(command.words)}, " ".join(command.words), as_json=args.json)
        return 0
    engine_manifest = manifest.read_manifest(args.engine)
    if (note := manifest.explain_ungated(engine_manifest)) is not None:
        console.print_message(f"note: {note}")
    # Manifests of earlier versions do not say.
    if "graph" in engine_manifest.results:
        console.print_message(f"graph: {engine_manifest.results['graph']}")
    console.print_message(f"serving {args.engine} on http://{args.host}:{args.port}")
    end_if_files_change(command.watch, args.host, args.port)
    os.execve(command.words[0], list(command.words), dict(command.environment))
