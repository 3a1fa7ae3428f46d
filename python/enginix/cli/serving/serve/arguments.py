"""The arguments of ``enginix serve``."""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix.cli.option_shapes import (
    add_flag,
    add_image_options,
    add_number,
    add_path,
    add_repeated,
    add_timeouts,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "repository", "REPOSITORY", "directory that enginix triton-repo wrote")
    add_path(parser, "--tritonserver", "DIR", "directory of tritonserver (see above)")
    add_path(parser, "--python", "P", "python3 whose environment runs the models (default: this one)")
    parser.add_argument(
        "--model-runtime",
        metavar="NAME",
        help="runtime of the installation, if its runtime.json does not name it",
    )
    add_image_options(parser, "root file system of the runtime's image, to run inside")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="IP",
        help="listen address for HTTP, gRPC and metrics (default: loopback)",
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        add_number(
            parser,
            f"--{name}-port",
            f"port of the {name} endpoint (default: {port}; 0 takes a free one)",
            default=port,
        )
    for name in ("grpc", "metrics"):
        add_flag(parser, f"--no-{name}", f"start no {name} endpoint")
    add_path(parser, "--admin-key-file", "FILE", "file with the key that opens the restricted APIs")
    add_repeated(
        parser, "--triton-flag", "NAME=VALUE", "option of tritonserver, for instance http-thread-count=16"
    )
    add_repeated(
        parser, "--env", "NAME=VALUE", "environment variable of the server, for instance NCCL_DEBUG=INFO"
    )
    parser.add_argument(
        "--gpus", metavar="LIST", help="GPUs that the server sees, by index or UUID, joined by commas"
    )
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument(
        "--hosts", metavar="LIST", help="machines of the ranks and their slots, this one first: a:8,b:8"
    )
    add_path(spread, "--hostfile", "FILE", "file with the same, one line 'a slots=8' for each machine")
    add_number(
        spread, "--worker", "run the preflight for N ranks, then wait until another machine starts them here"
    )
    parser.add_argument(
        "--agent",
        default="ssh",
        metavar="NAME",
        help="program that starts ranks on other machines: ssh (default), kubectl, or one that takes "
        "HOST COMMAND",
    )
    add_path(
        parser,
        "--ready-file",
        "FILE",
        "file that exists while --worker waits (default: /tmp/enginix-worker)",
        default=Path("/tmp/enginix-worker"),
    )
    start = "seconds within which the server must answer"
    add_timeouts(parser, start, "seconds for running requests to end at a stop")
    add_flag(parser, "--check", "run the preflight only")
    add_flag(parser, "--dry-run", "print command and environment only")
    parser.add_argument(
        "--ask", metavar="PROMPT", help="prompt to send once the server is ready, whole and streamed"
    )
    add_number(parser, "--max-tokens", "largest number of tokens for --ask (default: 64)", default=64)
    add_flag(parser, "--exit-after-ask", "stop the server after the answer")
    add_flag(parser, "--verbose", "show the server's log while it starts, in more detail")
