"""Quantizes a model with NVIDIA ModelOpt: a unified Hugging Face checkpoint, read back and checked.

Formats: fp8, fp8_pc_pt, nvfp4, int4_awq, w4a8_awq, int8_sq, int8_wo, int4_wo, and mixed, which chooses a
format for each layer within a budget of bits a weight. docs/reference/quantization.md says
what each is for, and which GPU executes it.

The KV cache is quantized only when --kv-cache asks for it. Tokenizer, chat template and licence are carried
along, and the manifest names model, calibration data and tools. On a CPU the same inputs give the same bytes.

  enginix calibrate ./qwen3-8b -o ./calibration
  enginix quantize ./qwen3-8b --format fp8 --calibration ./calibration --target h200 -o ./qwen3-8b-fp8
  enginix quantize ./qwen3-8b --format mixed --effective-bits 6 --calibration ./calibration -o ./mixed
  enginix convert ./qwen3-8b-fp8 -o ./checkpoint
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_number, add_output, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "model", "MODEL", "directory with config.json and safetensors")
    add_output(parser, "DIR", "directory to write", required=True)
    parser.add_argument("--format", required=True, metavar="FORMAT", help="number format, see above")
    add_path(
        parser,
        "--calibration",
        "PATH",
        "calibration data of enginix calibrate; weight-only formats need none",
    )
    parser.add_argument("--kv-cache", metavar="FORMAT", help="fp8: quantize the KV cache, too (default: not)")
    add_number(
        parser,
        "--effective-bits",
        "mixed: bits a weight, on average over the whole model",
        type=float,
        metavar="X",
    )
    parser.add_argument(
        "--candidates",
        metavar="A,B",
        help="mixed: formats to choose from (default: the first pair that runs there)",
    )
    parser.add_argument(
        "--target", metavar="GPU", help="GPU that will serve it (h200, …): refuse what it cannot run"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to compute on (default: cpu)"
    )
    add_number(parser, "--batch-size", "rows at a time (default: 8)", default=8)
    add_number(parser, "--threads", "CPU threads (default: PyTorch's)")
    parser.add_argument("--name", help="name in the manifest (default: the model's, with the format)")


def run(args: argparse.Namespace) -> int:
    from enginix.quantize import formats, source

    def resolve(architecture: str | None) -> formats.FormatChoice:
        return formats.resolve_format(
            args.format,
            effective_bits=args.effective_bits,
            candidates=tuple(args.candidates.split(",")) if args.candidates else (),
            kv_cache=args.kv_cache,
            target_name=args.target,
            architecture=architecture,
            device=args.device,
        )

    resolve(None)  # refuse wrong options before any directory is read
    choice = resolve(source.read_source_model(args.model).architecture)
    from enginix.quantize.run import QuantizeOptions, quantize_model

    options = QuantizeOptions(args.device, args.batch_size, args.threads, args.name)
    results = quantize_model(args.model, args.output, choice, args.calibration, options)
    console.print_result(
        {"model": str(args.output), "quantization": choice.algorithm, **results},
        f"{args.output}: {choice.algorithm}, {console.format_bytes(results['bytes'])}, "
        f"{results['bitsPerWeight']} bits a weight",
    )
    return 0
