"""The program of Nix builds that ask an engine: ``ask`` writes the questions, ``answers`` asks the engine.

It loads no sub-command, so neither help texts nor thresholds are among a build's inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from enginix import console


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ask`` or ``answers`` and return the exit code."""
    parser = argparse.ArgumentParser(prog="enginix", allow_abbrev=False)
    parser.add_argument("verb", choices=("ask", "answers"))
    # Nix passes an empty text for an absent value.
    for name in ("model", "questions", "engine", "asked", "rootfs", "driver", "pin", "python", "out"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text) if text else None)
    parser.add_argument("--stall-minutes", type=float, default=30.0)
    parser.add_argument("--accept-driver", action="store_true")
    args = parser.parse_args(argv)
    try:
        if args.verb == "ask":
            _write_questions(args)
        elif args.python is not None:
            from enginix.kinds.edgellm import edgellm_asker

            stall, paths = args.stall_minutes * 60, (args.engine, args.model, args.asked, args.out)
            edgellm_asker.ask_edgellm_engine(*paths, python=args.python, driver=args.driver, stall=stall)
        else:
            from enginix.kinds.trtllm import trtllm_asker

            trtllm_options = trtllm_asker.TrtllmAskOptions(
                args.rootfs, args.driver, args.pin, args.stall_minutes * 60, args.accept_driver
            )
            trtllm_asker.ask_trtllm_engine(args.engine, args.asked, args.out, trtllm_options)
    except Exception as e:
        return console.report_error(e)
    return 0


def _write_questions(args: argparse.Namespace) -> None:
    from enginix.evaluation.engine_protocol import engine_questions
    from enginix.evaluation.reference_answers import question_builder
    from enginix.work_directory import new_directory

    with new_directory(args.out) as partial:
        engine_questions.write_engine_questions(
            question_builder.build_engine_questions(args.model, args.questions), partial
        )
