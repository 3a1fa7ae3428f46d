"""Measures the speed of an engine or an OpenAI endpoint: to the first token, between tokens, throughput.

  enginix bench ./engine                          served for the measurement, kept
  enginix bench http://127.0.0.1:4000/v1          one request at a time
  enginix bench URL --concurrency 8 -o new.json   kept, with its samples
  enginix bench URL --engine ./engine             kept beside it, for enginix compare
  enginix bench URL --rate 2 --concurrency 32     two requests a second, by the clock
  enginix bench --compare old.json new.json       gate speed: exit 1 where it is slower

For an engine the server is started on free ports of loopback, as enginix up does, and is stopped at the end
or by Ctrl-C: Triton behind the gateway for kinds reference and rtx, trtllm-serve for tensorrt and llmapi. How
long it took to load is measured, too. The measurement is kept beside the engine, as DIR.bench.json, or with
-o FILE there alone. Of an endpoint --engine is believed where its model has the engine's name; --model NAME
says that the engine has this one.

Prompts are random words, all different, so that no cache of prefixes answers them. Latencies count from when
a request was due. Intervals are of the mean, by bootstrap, with 95 % confidence. --compare tells a regression
only where the slowdown is beyond noise (99.9 %) and beyond --tolerance; both measurements must have the same
options, and come from the same idle machine.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix import __version__, console
from enginix.cli.option_shapes import add_number, add_output, add_path, fill_options, refuse_options
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK, MachineError, UsageError
from enginix.progress import track_step

if TYPE_CHECKING:
    from enginix.bench.load import RequestMix


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="ENDPOINT|ENGINE",
        help="http://host:port/v1 of a server, or the directory of an engine",
    )
    parser.add_argument("--model", metavar="NAME", help="model (default: the endpoint's only one)")
    add_number(parser, "--input-words", "of each prompt (128)", default=128)
    add_number(parser, "--output-tokens", "of each answer (64)", default=64)
    add_number(parser, "--requests", "measured (32)", default=32)
    add_number(parser, "--concurrency", "at the same time (1)", default=1)
    add_number(parser, "--rate", "requests a second (default: as they end)", type=float, metavar="R")
    add_number(parser, "--warmup", "requests beforehand (2)", default=2)
    add_number(parser, "--seed", "of the prompts (0)", default=0)
    add_path(parser, "--key-file", "FILE", "file with the endpoint's key")
    add_path(
        parser,
        "--engine",
        "DIR",
        "engine that the endpoint serves: the measurement is kept beside it, where compare reads it",
    )
    add_output(parser, "FILE", "keep it there alone")
    add_path(
        parser,
        "--dataset",
        "FILE",
        "write the same requests for trtllm-bench throughput --dataset FILE; no load is run",
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="two measurements; no load is run"
    )
    add_number(
        parser, "--tolerance", "slowdown that is no regression (0.03)", default=0.03, type=float, metavar="X"
    )
    server = parser.add_argument_group("the server of ENGINE")
    add_number(server, "--start-timeout", "of each server (600)", default=600, type=float, metavar="S")
    server.add_argument("--device", metavar="DEVICE", help="kind reference: cpu, cuda, cuda:N (cpu)")
    add_path(server, "--tritonserver", "DIR", "as enginix serve has it")
    add_path(server, "--gateway-python", "P", "python3 that has litellm")
    add_path(server, "--interpreter", "CHECKPOINT", "kind rtx: execute its network on the CPU")
    add_path(server, "--rootfs", "DIR", "kinds tensorrt and llmapi: root file system of the runtime's image")
    add_path(server, "--pin", "FILE", "their runtime's pin file")
    add_path(server, "--driver", "DIR", "the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    if args.compare is not None:
        return _compare(args)
    if args.dataset is not None:
        return _write_dataset(args)
    if args.subject is None:
        raise UsageError(
            "pass an endpoint or an engine, --dataset FILE or --compare BEFORE AFTER",
            fix="enginix bench ./engine, or enginix bench http://127.0.0.1:4000/v1",
        )
    _read_mix(args).check()
    is_address = "://" in args.subject or re.search(r":\d+(/|$)", args.subject)
    if is_address and not os.path.exists(args.subject):
        return _measure_endpoint(args)
    return _measure_engine(args, Path(args.subject))


# Options of an endpoint that a server of one's own has not, and of that server.
_ENDPOINT_OPTIONS = ("engine", "key_file", "model")
_SERVER_OPTIONS = ("device", "tritonserver", "gateway_python", "interpreter", "rootfs", "pin", "driver")


def _measure_endpoint(args: argparse.Namespace) -> int:
    from enginix.gateway.keys import read_key
    from enginix.up.chat import choose_model, parse_endpoint

    refuse_options(args, _SERVER_OPTIONS, "an option of a server that bench starts; this one runs already")
    url = parse_endpoint(args.subject)
    output = _choose_output(args.output, args.engine)
    engine = None if args.engine is None else _describe_engine(args.engine)
    key = None if args.key_file is None else read_key(str(args.key_file.absolute()))
    model = choose_model(url, args.model, key)
    if engine is not None and args.model is None:
        _require_served(url, model, engine["name"], args.engine)
    return _measure(args, url, model, key, output, engine)


def _require_served(url: str, model: str, name: str, engine: Path) -> None:
    """Refuse an endpoint whose model is not called as the engine; an endpoint says no more of itself."""
    from enginix.up.stages import name_model

    if name_model(model) not in (name_model(name), name_model(engine.resolve().name)):
        raise UsageError(
            f"{url} serves {model}, and this engine is {name}",
            where=f"--engine {engine}",
            fix=f"serve this engine there; or, if it is served as {model}: --model {model}",
        )


def _measure_engine(args: argparse.Namespace, engine: Path) -> int:
    """Serve an engine, measure how long that took and the load, and stop the server."""
    from enginix.bench.engine_server import EngineServerOptions, serve_engine
    from enginix.bench.load import ask_once
    from enginix.up.chat import choose_model

    if not engine.is_dir():
        raise UsageError(
            "neither the directory of an engine nor an address",
            where=args.subject,
            fix="pass the output of enginix build, or http://host:port/v1",
        )
    refuse_options(args, _ENDPOINT_OPTIONS, "an option of an endpoint; bench starts a server of this engine")
    setting = _describe_engine(engine)
    _require_length(args, engine)
    output = _choose_output(args.output, engine)
    options = fill_options(EngineServerOptions, args)
    with serve_engine(engine, options) as running:
        model = choose_model(running.url, None)
        first = ask_once(running.url, model, _read_mix(args)) - running.begun
        start = {"readySeconds": round(running.seconds, 3), "firstTokenSeconds": round(first, 3)}
        console.print_message(f"{model}: ready after {running.seconds:.1f} s, first token {first:.1f} s")
        return _measure(args, running.url, model, None, output, setting, start)


def _require_length(args: argparse.Namespace, engine: Path) -> None:
    """Refuse answers that are longer than the engine's sequences, before a server is started."""
    from enginix.manifest import read_manifest

    limits = read_manifest(engine, "engine").options.get("limits")
    longest = limits.get("max_seq_len", limits.get("maxSeqLen")) if isinstance(limits, dict) else None
    # A prompt has at least one token.
    if isinstance(longest, int) and longest and args.output_tokens >= longest:
        raise UsageError(
            f"{args.output_tokens}, and prompt and answer have at most {longest} tokens in this engine",
            where="--output-tokens",
            fix=f"pass fewer: --input-words (now {args.input_words}) are tokens, too",
        )


def _measure(
    args: argparse.Namespace,
    url: str,
    model: str,
    key: str | None,
    output: Path | None,
    engine: dict[str, Any] | None,
    start: dict[str, float] | None = None,
) -> int:
    from enginix.bench.load import explain_refusal, run_load
    from enginix.bench.measurement import came_in_bursts, describe_measurement
    from enginix.files import dump_json, write_new_text

    mix = _read_mix(args)
    with track_step(model, mix.requests, "requests") as progress:
        records = run_load(url, model, mix, key, progress.advance_to)
    measured = describe_measurement(records, mix, _describe_setting(url, model, engine) | {"start": start})
    if output is not None:
        kept = write_new_text(output, dump_json(measured))
        console.print_message(f"measurement: {kept}")
        if kept != output:
            console.print_message(f"note: another run made {output} meanwhile; both are kept")
    shown = {name: value for name, value in measured.items() if name != "samples"}
    text = _format_measurement(measured)
    if came_in_bursts(records):
        note = "answers came at once: between tokens lies no time of the engine; pass more --output-tokens"
        console.print_notes([note])
    failed = next((record for record in records if record.error is not None), None)
    if failed is not None:
        text += f"\nfix: {explain_refusal(url, model, mix, key, failed.status)}"
    console.print_result(shown, text)
    return EXIT_CHECK_FAILED if measured["failed"] else EXIT_OK


def _read_mix(args: argparse.Namespace) -> RequestMix:
    from enginix.bench.load import RequestMix

    return fill_options(RequestMix, args)


def _write_dataset(args: argparse.Namespace) -> int:
    from enginix.bench.load import format_dataset
    from enginix.files import write_new_text
    from enginix.output_path import require_absent_file

    if args.subject is not None or args.output is not None or args.engine is not None:
        raise UsageError("--dataset runs no load", fix="leave ENDPOINT, -o and --engine out")
    text = format_dataset(_read_mix(args))
    require_absent_file(args.dataset)
    dataset = write_new_text(args.dataset, text)
    console.print_result(
        {"dataset": str(dataset), "requests": args.requests},
        f"{dataset}: {args.requests} requests for trtllm-bench --dataset",
    )
    return EXIT_OK


def _choose_output(output: Path | None, engine: Path | None) -> Path | None:
    """Return where the measurement is kept, before a load is run for it.

    Raises:
        UsageError: a file is there already, or it would lie in an artefact.
    """
    from enginix.bench_record import find_bench_record
    from enginix.manifest import MANIFEST_FILE
    from enginix.output_path import require_absent_file
    from enginix.run_log import is_store

    if output is None and engine is not None:
        beside = find_bench_record(engine)
        output = beside if os.access(beside.parent, os.W_OK) and not is_store(beside.parent) else None
        if output is None:
            console.print_message(f"note: {beside.parent} keeps no measurement; -o FILE does")
    if output is not None:
        require_absent_file(output)
        for directory in Path(os.path.abspath(output)).parents:
            if (directory / MANIFEST_FILE).is_file():
                raise UsageError(
                    f"lies in {directory}, an artefact that verify would call changed",
                    where=f"--output {output}",
                    fix=f"-o {find_bench_record(directory)}",
                )
    return output


def _describe_engine(engine: Path) -> dict[str, Any]:
    from enginix.manifest import read_manifest
    from enginix.run_log import read_manifest_digest

    manifest = read_manifest(engine, "engine")
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "runtime": manifest.runtime.get("id"),
        "manifest": read_manifest_digest(engine),
    }


def _describe_setting(url: str, model: str, engine: dict[str, Any] | None) -> dict[str, Any]:
    """Return where and of what a measurement is: a figure says nothing without them."""
    from enginix.credentials import redact_secrets
    from enginix.machine.driver import find_driver
    from enginix.machine.target import probe_machine

    try:
        machine = probe_machine(find_driver(None))
        gpus, gpu_driver = [gpu.name for gpu in machine.gpus], machine.driver
    except MachineError:
        gpus, gpu_driver = [], None
    return {
        "enginix": __version__,
        "url": redact_secrets(url),
        "model": model,
        "client": {"gpus": gpus, "driver": gpu_driver, "cpus": os.cpu_count()},
        "engine": engine,
    }


def _format_measurement(measured: dict[str, Any]) -> str:
    from enginix.bench.measurement import FIGURE_LABELS

    def line(name: str, label: str) -> str:
        figure = measured["figures"][name]
        if figure is None:
            return f"{label:<22} –"
        mean, low, high = (1000 * figure[key] for key in ("mean", "low", "high"))
        p50, p90, p99 = (1000 * figure[key] for key in ("p50", "p90", "p99"))
        return (
            f"{label:<22} {mean:>9.2f} ms ({low:.2f} to {high:.2f})   "
            f"median {p50:.2f}, 90 % {p90:.2f}, 99 % {p99:.2f}"
        )

    lines = [
        f"{measured['model']}: {measured['requests']} requests, {measured['failed']} failed, "
        f"{measured['seconds']:.1f} s",
        *(line(name, label) for name, label in FIGURE_LABELS.items()),
    ]
    if (start := measured["start"]) is not None:
        lines.insert(
            1,
            f"{'loading':<22} {start['readySeconds']:>9.1f} s  until it answered, "
            f"{start['firstTokenSeconds']:.1f} s to the first token",
        )
    if measured["outputTokensPerSecond"] is not None:
        lines.append(
            f"{'throughput':<22} {measured['outputTokensPerSecond']:>9.1f} tokens/s, "
            f"{measured['requestsPerSecond']:.2f} requests/s"
        )
    lines += [f"error: {text}" for text in measured["errors"]]
    return "\n".join(lines)


def _compare(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from enginix.bench.measurement import (
        FIGURE_LABELS,
        compare_measurements,
        read_measurement,
        require_no_regression,
    )

    if not 0 <= args.tolerance < 10:
        raise UsageError(
            f"--tolerance is {args.tolerance}", fix="pass a share of the time, for instance 0.03"
        )
    before, after = (read_measurement(path) for path in args.compare)
    changes = compare_measurements(before, after, args.tolerance)
    lines = [
        f"{FIGURE_LABELS[c.figure]:<22} {1000 * c.before:>9.2f} ms → {1000 * c.after:>9.2f} ms  "
        f"{c.ratio:.3f} ×{'  slower' if c.is_slower else ''}"
        for c in changes
    ]
    slower = any(c.is_slower for c in changes)
    if not args.json or not slower:
        console.print_result(
            {"gate": "speed", "passed": not slower, "changes": [asdict(c) for c in changes]}, "\n".join(lines)
        )
    require_no_regression(changes)
    return EXIT_OK
