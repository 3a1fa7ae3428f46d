"""Waits until an OpenAI server has answered: models listed, then one token generated.

  enginix ready http://127.0.0.1:8000 --timeout 600 --api-key-credential api-key

For servers that do not tell systemd when they are ready (trtllm-serve, tensorrt-edgellm-serve): it is their
unit's ExecStartPost. Whoever asks for a key is told it from a file or a systemd credential, never on a
command line.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from enginix import console
from enginix.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("url", metavar="URL", help="http://host:port")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds (default: 600)")
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first that is listed)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key")
    parser.add_argument(
        "--api-key-credential", metavar="NAME", help="the key's file below $CREDENTIALS_DIRECTORY"
    )


def run(args: argparse.Namespace) -> int:
    """Waits."""
    from enginix.rollout.ready import await_answer

    key = _key(args)
    seconds = await_answer(args.url, args.timeout, args.model, key)
    console.result({"ready": True, "seconds": round(seconds, 3)}, f"answers after {seconds:.1f} s", as_json=args.json)
    return 0


def _key(args: argparse.Namespace) -> str | None:
    file: Path | None = args.api_key_file
    if args.api_key_credential is not None:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise UsageError("systemd has set no CREDENTIALS_DIRECTORY", where="--api-key-credential")
        file = Path(directory) / args.api_key_credential
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"unreadable: {e}", where=str(file)) from e
