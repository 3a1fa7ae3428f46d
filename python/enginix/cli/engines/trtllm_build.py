"""``enginix build --kind tensorrt`` and ``--kind llmapi``: their arguments, and from them a request."""

from __future__ import annotations

import argparse
import json
from typing import Any

from enginix.cli.built_engine import print_built_engine
from enginix.cli.option_shapes import add_flag, add_image_options, add_number, add_path, add_repeated
from enginix.errors import UsageError
from enginix.kinds.registry import find_kind
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build.engine_build import build_tensorrt_engine
from enginix.kinds.tensorrt.build.request import STRATEGIES, BuildPaths, make_build_request, read_request
from enginix.letter_case import to_kebab_case
from enginix.runtime.table import DEFAULT_RUNTIME
from enginix.tables import load_table

LIMITS = ("maxBatchSize", "maxInputLen", "maxSeqLen", "maxNumTokens", "maxBeamWidth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("kinds tensorrt and llmapi")
    group.add_argument("--target", metavar="GPU", help="GPU that the engine is for, for instance h200")
    group.add_argument(
        "--runtime",
        metavar="ID",
        default=DEFAULT_RUNTIME,
        help="runtime that builds and serves it: a name (enginix runtime list) or FILE.json of a description "
        f"(default: {DEFAULT_RUNTIME})",
    )
    add_image_options(group)
    for name in LIMITS:
        group.add_argument(f"--{to_kebab_case(name)}", type=int, metavar="N", dest=name)
    group.add_argument(
        "--profile",
        choices=sorted(load_table("build_options")["profiles"]),
        help="profile of limits and options",
    )
    add_repeated(group, "--plugin", "NAME=VALUE", "option of trtllm-build, for instance gemm-plugin=auto")
    group.add_argument("--strategy", choices=STRATEGIES, default="checkpoint", help="loader of the weights")
    add_number(group, "--workers", "ranks built at once, a GPU each", default=1)
    add_number(group, "--tensor-parallel", "number of ranks, without a checkpoint", default=1)
    add_path(group, "--timing-cache", "FILE", "timing cache of an earlier build")
    add_path(group, "--timing-cache-out", "FILE", "file for this build's timing cache")
    add_number(
        group,
        "--stall-minutes",
        "minutes without progress until the build counts as hung",
        default=30.0,
        type=float,
    )
    add_flag(group, "--accept-driver", "build with a driver older than the runtime's floor")
    add_repeated(group, "--llm-arg", "NAME=JSON", "kind llmapi: argument of the LLM class")
    add_path(group, "--gated", "DIR", "reference engine of this checkpoint, whose gates passed")
    group.add_argument("--in-place", action="store_true", help=argparse.SUPPRESS)
    add_path(group, "--request", "FILE", "all of the above as JSON, as Nix writes it")


# What NVIDIA's tool alone reads: the arguments of the LLM class have none of it.
_TOOL_OPTIONS = {
    "--rootfs", "--driver", "--strategy", "--workers", "--timing-cache", "--timing-cache-out",
    "--accept-driver", "--gated",
}  # fmt: skip
# What stands beside a request's JSON, not in it.
_BESIDE_REQUEST = {"--request", "--rootfs", "--driver", "--in-place", "--timing-cache-out"}


def list_given_options(args: argparse.Namespace) -> list[str]:
    """List the options of TensorRT-LLM's kinds that a command line gives another value than the default."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    flags = {action.dest: action.option_strings[-1] for action in parser._actions}
    return [flags[name] for name, value in defaults.items() if getattr(args, name, value) != value]


def _refuse_unread_options(args: argparse.Namespace) -> None:
    given_options = list_given_options(args)
    if args.request is not None and (beside := [o for o in given_options if o not in _BESIDE_REQUEST]):
        raise UsageError(
            f"{', '.join(beside)} beside --request, which has all of it", fix="leave one of the two out"
        )
    if find_kind(args.kind).is_compiled:
        if "--llm-arg" in given_options:
            raise UsageError("--llm-arg: kind tensorrt has no arguments of the LLM class", fix="--plugin")
    elif unread := [o for o in given_options if o in _TOOL_OPTIONS]:
        raise UsageError(f"kind {args.kind} reads no {', '.join(unread)}", fix="leave it out")


def run(args: argparse.Namespace) -> int:
    _refuse_unread_options(args)
    request_fields = _collect_request_fields(args)
    if not find_kind(args.kind).is_compiled:
        from enginix.kinds.llmapi.llmapi_engine import LlmApiRequest, write_llmapi_engine

        engine_manifest = write_llmapi_engine(
            LlmApiRequest.parse(request_fields), args.model, args.output, link=args.link_checkpoint
        )
    else:
        request = make_build_request(request_fields, args.checkpoint, args.model)
        paths = BuildPaths(args.output, args.rootfs, args.driver, args.in_place, args.timing_cache_out)
        engine_manifest = build_tensorrt_engine(request, args.checkpoint, args.model, paths)
    target, results = engine_manifest.target, engine_manifest.results
    gated = "gated" if isinstance(results.get("gates"), dict) else "not gated"
    text = f"{target.get('gpu') or target.get('name') or 'no target'}, {gated}"
    print_built_engine(args.output, engine_manifest, text, target=target, results=results)
    return 0


def _collect_request_fields(args: argparse.Namespace) -> dict[str, Any]:
    if args.request is not None:
        return read_request(args.request)
    limits = {n: getattr(args, n) for n in LIMITS if getattr(args, n) is not None}
    return {
        "name": args.name,
        "target": args.target,
        "runtime": args.runtime,
        "profile": args.profile,
        "limits": limits,
        "options": dict(build_options.parse_plugin_option(text) for text in args.plugin),
        "strategy": args.strategy,
        "workers": args.workers,
        "timingCache": str(args.timing_cache) if args.timing_cache else None,
        "stallMinutes": args.stall_minutes,
        "acceptDriver": args.accept_driver,
        "pin": str(args.pin) if args.pin else None,
        "gates": str(args.gated) if args.gated else None,
        "tensorParallel": args.tensor_parallel,
        "llmArgs": dict(_parse_llm_argument(text) for text in args.llm_arg),
    }


def _parse_llm_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(
            f"--llm-arg {text!r}", fix="pass NAME=JSON, for instance enable_chunked_prefill=true"
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
