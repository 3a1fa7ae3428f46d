"""Talks to an OpenAI endpoint in the terminal, streamed: enginix up's, or any other.

  enginix chat                                      http://127.0.0.1:4000/v1
  enginix chat http://host:8000 --model qwen3 --key-file ./key
  echo "What is a derivation?" | enginix chat       one question, one answer

An address without a path is that of its /v1. /new begins a new conversation, /exit or Ctrl-D ends. The model
needs a chat template.
"""

from __future__ import annotations

import argparse
import sys

from enginix import console
from enginix.cli.option_shapes import add_number, add_path
from enginix.errors import EXIT_OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", nargs="?", metavar="URL", help="of the endpoint (default: enginix up's)")
    parser.add_argument("--url", help="the same")
    parser.add_argument("--model", metavar="NAME", help="model (default: the endpoint's only one)")
    parser.add_argument("--system", metavar="TEXT", help="message of the system")
    add_number(parser, "--max-tokens", "of an answer (default: what fits)")
    add_path(parser, "--key-file", "FILE", "file with the endpoint's key")


def run(args: argparse.Namespace) -> int:
    """Read questions until the end of the input, and print the answers."""
    from enginix.gateway.keys import read_key
    from enginix.up import chat

    key = None if args.key_file is None else read_key(str(args.key_file.absolute()))
    if args.url is not None and args.endpoint is not None:
        raise UsageError("the endpoint is given twice", where="--url", fix="leave one out")
    url = chat.parse_endpoint(args.endpoint or args.url or "http://127.0.0.1:4000/v1")
    model = chat.choose_model(url, args.model, key)
    options = {} if args.max_tokens is None else {"max_tokens": args.max_tokens}
    is_terminal = sys.stdin.isatty()
    begin = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages = list(begin)
    while True:
        question = _read_question(is_terminal)
        if question is None or question == "/exit":
            return EXIT_OK
        if question == "/new":
            messages = list(begin)
            continue
        messages.append({"role": "user", "content": question})
        pieces = []
        try:
            for piece in chat.stream_chat(url, model, messages, key, **options):
                pieces.append(piece)
                console.print_piece(piece)
        except KeyboardInterrupt:
            # Ends the answer, and not the conversation.
            if not is_terminal:
                raise
        answer = "".join(pieces)
        messages.append({"role": "assistant", "content": answer})
        console.print_result({"model": model, "answer": answer}, "")
        if not is_terminal:
            return EXIT_OK


def _read_question(is_terminal: bool) -> str | None:
    """Return the next question: a line of a terminal, or the whole of another input."""
    if not is_terminal:
        try:
            text = sys.stdin.read().strip()
            text.encode()  # the C locale reads other bytes as half a surrogate pair
        except UnicodeError as e:
            raise UsageError(
                "is not UTF-8", where="standard input", fix="convert it: iconv -f ENCODING -t UTF-8"
            ) from e
        return text or None
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return None
        if line:
            return line
