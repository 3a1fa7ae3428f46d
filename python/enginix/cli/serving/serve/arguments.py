"""The arguments of ``enginix serve``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "repository", type=Path, metavar="REPOSITORY", help="directory that enginix triton-repo wrote"
    )
    parser.add_argument(
        "--tritonserver", type=Path, metavar="DIR", help="directory of tritonserver (see above)"
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="P",
        help="python3 whose environment runs the models (default: this one)",
    )
    parser.add_argument(
        "--model-runtime",
        metavar="NAME",
        help="runtime of the installation, if its runtime.json does not name it",
    )
    parser.add_argument(
        "--rootfs", type=Path, metavar="DIR", help="root file system of the runtime's image, to run inside"
    )
    parser.add_argument(
        "--pin", type=Path, metavar="FILE", help="the runtime's pin file, with the image's environment"
    )
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="IP",
        help="listen address for HTTP, gRPC and metrics (default: loopback)",
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port",
            type=int,
            default=port,
            metavar="N",
            help=f"port of the {name} endpoint (default: {port}; 0 takes a free one)",
        )
    for name in ("grpc", "metrics"):
        parser.add_argument(f"--no-{name}", action="store_true", help=f"start no {name} endpoint")
    parser.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="file with the key that opens the restricted APIs"
    )
    parser.add_argument(
        "--triton-flag",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of tritonserver, for instance http-thread-count=16",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the server, for instance NCCL_DEBUG=INFO",
    )
    parser.add_argument(
        "--gpus", metavar="LIST", help="GPUs that the server sees, by index or UUID, joined by commas"
    )
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument(
        "--hosts", metavar="LIST", help="machines of the ranks and their slots, this one first: a:8,b:8"
    )
    spread.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="file with the same, one line 'a slots=8' for each machine",
    )
    spread.add_argument(
        "--worker",
        type=int,
        metavar="N",
        help="run the preflight for N ranks, then wait until another machine starts them here",
    )
    parser.add_argument(
        "--agent",
        default="ssh",
        metavar="NAME",
        help="program that starts ranks on other machines: ssh (default), kubectl, or one that takes "
        "HOST COMMAND",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        default=Path("/tmp/enginix-worker"),
        metavar="FILE",
        help="file that exists while --worker waits (default: /tmp/enginix-worker)",
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds within which the server must answer (default: 600)",
    )
    parser.add_argument(
        "--exit-timeout",
        type=int,
        default=30,
        metavar="S",
        help="seconds for running requests to end at a stop (default: 30)",
    )
    parser.add_argument("--check", action="store_true", help="run the preflight only")
    parser.add_argument("--dry-run", action="store_true", help="print command and environment only")
    parser.add_argument(
        "--ask", metavar="PROMPT", help="prompt to send once the server is ready, whole and streamed"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        metavar="N",
        help="largest number of tokens for --ask (default: 64)",
    )
    parser.add_argument("--exit-after-ask", action="store_true", help="stop the server after the answer")
    parser.add_argument(
        "--verbose", action="store_true", help="show the server's log while it starts, in more detail"
    )
