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
from pathlib import Path

from enginix import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="directory with config.json and safetensors"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--format", required=True, metavar="FORMAT", help="number format, see above")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="PATH",
        help="calibration data of enginix calibrate; weight-only formats need none",
    )
    parser.add_argument("--kv-cache", metavar="FORMAT", help="fp8: quantize the KV cache, too (default: not)")
    parser.add_argument(
        "--effective-bits",
        type=float,
        metavar="X",
        help="mixed: bits a weight, on average over the whole model",
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
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at a time (default: 8)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
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
        as_json=args.json,
    )
    return 0
