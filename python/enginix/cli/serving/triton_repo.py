"""Engine → Triton model repository, validated before it is written.

  enginix triton-repo ENGINE -o DIR

ENGINE is the output of `enginix build`, of any kind. Tensor names are NVIDIA's.

  reference  tensorrt_llm (decoupled, continuous batching) and ensemble, which takes and gives text
  tensorrt   preprocessing, tensorrt_llm (the C++ backend), postprocessing, ensemble and tensorrt_llm_bls;
             --parameter reaches every documented key of the backend, checked here, because the backend
             ignores what it cannot read
  llmapi     tensorrt_llm alone, its config.pbtxt and model.yaml agreeing
  rtx        the models of kind reference over NVIDIA's runtime; with --interpreter over an interpreter of the
             engine's network on the CPU, for tests

The files name the engine, its tokenizer and the enginix package by absolute path, so these must stay where
they are; in a Nix store they do. NVIDIA's own model.py are linked from the runtime's image (--rootfs), never
copied.

Every config.pbtxt is rendered through Triton's protobuf schema and parsed back, and the repository is checked
as a whole: names, versions, maps between the ensemble and its steps, data types, batch sizes, parameter keys,
placeholders, limits against the engine's. A mistake is an error that names the key and the nearest known one.

Serve it with `enginix serve DIR --tritonserver …`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from enginix import console, manifest
from enginix.cli.option_shapes import add_flag, add_number, add_output, add_path, add_repeated, fill_options
from enginix.errors import UsageError
from enginix.model.end_tokens import END_TOKENS_KEY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "engine", "ENGINE", "directory that enginix build wrote")
    add_output(parser, "DIR", "the repository to write", required=True)
    add_number(parser, "--max-batch-size", "requests that run at once (default: 8, or the engine's limit)")
    add_number(parser, "--max-tokens-limit", "largest max_tokens of a request (default: what fits)")
    add_number(
        parser,
        "--max-queue-delay-microseconds",
        "longest wait of preprocessing to fill a batch (kind tensorrt; default: 0)",
        default=0,
    )
    add_number(
        parser, "--max-queue-size", "longest queue of waiting requests (default: 0, no limit)", default=0
    )
    for model, kind in (
        ("preprocessing", "tensorrt"),
        ("postprocessing", "tensorrt"),
        ("ensemble", "reference, rtx"),
    ):
        add_number(
            parser, f"--{model}-instances", f"processes of {model} (kind {kind}; default: 1)", default=1
        )
    add_path(
        parser,
        "--interpreter",
        "CHECKPOINT",
        "kind rtx: execute the network of the engine's checkpoint on the CPU, not the engine",
    )
    parser.add_argument("--device", default="cpu", help="device of the reference executor: cpu, cuda, cuda:N")
    add_flag(
        parser, "--no-add-special-tokens", "give prompts to the model without the tokenizer's special tokens"
    )
    add_flag(parser, "--keep-special-tokens", "show special tokens in the answer's text")
    add_flag(parser, "--include-input", "begin answers with the prompt, unless a request says otherwise")
    nvidia = parser.add_argument_group("kinds tensorrt and llmapi")
    add_path(nvidia, "--rootfs", "DIR", "root file system of the runtime's image, for NVIDIA's models")
    add_flag(nvidia, "--no-decoupled", "one response a request: no streaming, but /infer works")
    add_flag(nvidia, "--no-accumulate-tokens", "let tensorrt_llm_bls decode each chunk alone")
    add_flag(nvidia, "--no-chat", "use NVIDIA's models unchanged; they take no messages")
    add_number(nvidia, "--bls-instances", "requests that tensorrt_llm_bls serves at once (default: all)")
    nvidia.add_argument(
        "--logits-datatype", default="FP32", metavar="TYPE", help="FP32 or FP16 (default: FP32)"
    )
    add_repeated(
        nvidia,
        "--parameter",
        "KEY=VALUE",
        "parameter of tensorrt_llm, for instance kv_cache_free_gpu_mem_fraction=0.8",
    )
    add_path(parser, "--enginix-path", "DIR", "directory with the enginix package that the models import")
    add_repeated(
        parser, "--add-model", "DIR", "model directory to add to the repository, as a link", type=Path
    )


def run(args: argparse.Namespace) -> int:
    from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
    from enginix.kinds.triton_repository.repository import build_triton_repository
    from enginix.triton.options import RepositoryOptions

    start = time.monotonic()
    options = build_triton_repository(
        args.engine,
        args.output,
        fill_options(
            RepositoryOptions,
            args,
            add_special_tokens=not args.no_add_special_tokens,
            skip_special_tokens=not args.keep_special_tokens,
            exclude_input_in_output=not args.include_input,
        ),
        enginix_path=args.enginix_path,
        add_models=args.add_model,
        models=fill_options(
            NvidiaModelOptions,
            args,
            decoupled=not args.no_decoupled,
            accumulate_tokens=not args.no_accumulate_tokens,
            chat=not args.no_chat,
            parameters=dict(_parse_parameter(text) for text in args.parameter),
        ),
        rootfs=args.rootfs,
    )
    seconds = time.monotonic() - start
    engine_manifest = manifest.read_manifest(args.engine, "engine")
    if engine_manifest.model.get(END_TOKENS_KEY) == []:
        console.print_message(
            "note: the model names no end token (eos_token_id): an answer ends at its max_tokens, at stop "
            "words, or at the end_id of its request"
        )
    console.print_result(
        {
            "output": str(args.output),
            "options": options,
            "seconds": round(seconds, 3),
            "warning": (unverified := manifest.explain_unverified(engine_manifest)),
        },
        f"Triton repository {args.output}: {_describe_sizes(options)}{seconds:.1f} s"
        + (f"\nwarning: {unverified}" if unverified else ""),
    )
    return 0


def _parse_parameter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{text!r} is not KEY=VALUE", where="--parameter")
    return key, value


def _describe_sizes(options: dict[str, Any]) -> str:
    summary = ""
    if options.get("max_batch_size"):
        summary += f"batches of {options['max_batch_size']}, "
    if options.get("max_tokens_limit"):
        summary += f"up to {options['max_tokens_limit']} tokens an answer, "
    return summary
