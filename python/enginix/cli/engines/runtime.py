"""Runtimes: pinned NVIDIA images, and commands inside them.

  enginix runtime list
  enginix runtime pin trtllm-1.2.1 -o runtime.json       on a machine with network and crane
  enginix runtime run trtllm-1.2.1 --rootfs ROOT -- trtllm-build --help
  enginix runtime check trtllm-1.2.1 --rootfs ROOT       whether this machine can run it
  enginix runtime predict < requests.jsonl               what trtllm-build makes of requests

RUNTIME is a name of the list, or FILE.json, which describes an image that is not in it:
{"like": "trtllm-1.4.0rc1", "image": "registry/name:tag", "versions": {"tensorrtLlm": "1.4.0rc2"}}.
Such a runtime is not verified by enginix, which its id, its artefacts and every command say.

A command in a runtime sees the image's root file system, /nix/store, the GPU driver and what --bind lets
in, nothing else of this machine. Its exit status is the command's; signals go to it. Without --rootfs it
runs on this machine's own files, which is right inside a container of the image.

predict reads requests on standard input, one JSON object a line: "checkpoint" (an object: architecture,
quant_algo, kv_cache_quant_algo, tp_size, pp_size …), "sm" (90) and "arguments" (["--max_batch_size", "8"]).
It prints each with "result" ("ok" or "error"), and "build_config" and "plugin_config" as trtllm-build writes
them into the engine's config.json, or "error". Anyone with the tool can compare (docs/reference/engines.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_flag, add_inner_json, add_output, add_path, add_repeated
from enginix.errors import EXIT_OK, MachineError, UsageError
from enginix.files import dump_json, write_text
from enginix.machine import driver
from enginix.machine.system import detect_system
from enginix.runtime import table
from enginix.tables import load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the runtimes that enginix knows")
    pin = verbs.add_parser("pin", help="compute the hash of an image, for mkRuntime's argument pin")
    pin.add_argument("runtime", metavar="RUNTIME", help="name, or FILE.json of a description")
    pin.add_argument("--image", metavar="TAG", help="tag of its images (default: the newest)")
    pin.add_argument(
        "--system", default=detect_system(), help="platform in Nix's words (default: this machine's)"
    )
    add_path(pin, "--keep", "DIR", "keep the unpacked image there")
    add_output(pin, "FILE", "pin to write", required=True)
    for name, text in (("run", "run a command inside"), ("check", "check that this machine can run it")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("runtime", metavar="RUNTIME", help="name, or FILE.json of a description")
        add_path(verb, "--rootfs", "DIR", "root file system of its image")
        add_path(verb, "--pin", "FILE", "its pin file, with the image's environment")
        add_path(verb, "--driver", "DIR", "the driver's root (default: found)")
        if name == "run":
            add_repeated(verb, "--bind", "PATH", "path to make visible, writable", type=Path)
            add_repeated(verb, "--ro-bind", "PATH", "path to make visible, read-only", type=Path)
            add_flag(verb, "--no-network", "hide the network")
            verb.add_argument("words", nargs="+", metavar="COMMAND", help="command and arguments, behind --")
        add_inner_json(verb)
    predict = verbs.add_parser(
        "predict", help="predict trtllm-build's settings for requests on standard input"
    )
    for verb in (predict, listing, pin):
        add_inner_json(verb)


def run(args: argparse.Namespace) -> int:
    if args.verb == "list":
        read = load_table("llm_args")["read"]
        rows = {name: table.find_runtime(name) for name in table.list_runtimes()}
        console.print_result(
            {name: runtime.row for name, runtime in rows.items()},
            "\n".join(
                console.wrap_line(
                    f"{name:<18} {', '.join(runtime.kinds):<18} TensorRT {runtime.tensorrt or '-':<12} "
                    f"driver {runtime.driver or '-':<11} LLM arguments "
                    f"{_describe_argument_text(runtime, read)}",
                    19,
                )
                for name, runtime in rows.items()
            ),
        )
        return EXIT_OK
    if args.verb == "pin":
        from enginix.registry.pin import pin_image

        image_pin = pin_image(args.runtime, args.image, args.system, keep=args.keep)
        write_text(args.output, dump_json(image_pin))
        console.print_result(image_pin, f"{args.output}: {image_pin['reference']} is {image_pin['hash']}")
        return EXIT_OK
    if args.verb == "predict":
        return _predict_builds()
    return _run_inside(args)


def _describe_argument_text(runtime: table.Runtime, read: list[str]) -> str:
    """Say whether the text of a runtime's LLM arguments was read; ``-`` where it has no kind llmapi."""
    if "llmapi" not in runtime.kinds:
        return "-"
    return "checked" if runtime.id in read else "not read: passed on with a warning"


def _predict_builds() -> int:
    from enginix.kinds.tensorrt.build.effective_build import predict_row

    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        try:
            print(json.dumps(predict_row(json.loads(line)), sort_keys=True))
        except (ValueError, RecursionError) as e:
            raise UsageError(f"not JSON: {e}", where=f"standard input, line {number}") from e
        except UsageError as e:
            raise UsageError(e.what, where=f"standard input, line {number}", fix=e.fix) from e
    return EXIT_OK


def _run_inside(args: argparse.Namespace) -> int:
    from enginix.runtime.child import run_in_foreground
    from enginix.runtime.sandbox import Bind, Sandbox, check_namespaces, make_read_binds

    runtime = table.find_runtime(args.runtime, pin=args.pin)
    if args.rootfs is not None:
        if not args.rootfs.is_dir():
            raise MachineError("no such directory", where=args.rootfs, fix="pass mkRuntime's passthru.rootfs")
        check_namespaces()
    with tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as work:
        checking = args.verb == "check"
        binds = (
            ()
            if checking
            else make_read_binds(args.ro_bind) + tuple(Bind(p.absolute(), True) for p in args.bind)
        )
        sandbox = Sandbox(
            runtime,
            args.rootfs,
            Path(work),
            driver.find_driver(args.driver),
            binds=binds,
            network=not checking and not args.no_network,
        )
        sandbox.prepare()
        status = run_in_foreground(sandbox, ["true"] if checking else args.words)
    if checking:
        if status != 0:
            raise MachineError(f"a command inside ended with {status}", where=args.rootfs or "this machine")
        console.print_result(
            {"runtime": runtime.id, "works": True, "driver": sandbox.driver.is_present},
            f"{runtime.id}: commands run"
            + ("" if sandbox.driver.is_present else "; no GPU driver was found"),
        )
    return status
