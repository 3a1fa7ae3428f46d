"""The command that follows a stage: printed to people at a terminal, where it works as it is pasted."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from enginix.errors import EnginixError
from enginix.output_path import refuse_output_in_input, require_absent

# The words of commands that follow one another.
_Words = list[list[str]]


def suggest_next(name: str, args: argparse.Namespace, modules: Mapping[str, str]) -> str | None:
    """Return the command line that follows a stage, with its own paths; None where none would work.

    Args:
        modules: command → its module; a small package of the flake leaves some out.
    """
    suggest = _SUGGESTIONS.get(name)
    if suggest is None or not isinstance(getattr(args, "output", None), Path):
        return None
    try:
        following = suggest(args)
        if any(find_spec(modules[words[0]]) is None for words in following):
            return None
        return " && ".join(shlex.join(["enginix", *words]) for words in following) or None
    except (EnginixError, ImportError, OSError):
        return None


def _choose_output(name: str, *inputs: Path) -> str:
    """Return the first of NAME, NAME-2, … that a command can write."""
    for number in range(1, 100):
        path = Path(name if number == 1 else f"{name}-{number}")
        try:
            require_absent(path)
        except EnginixError:
            continue
        refuse_output_in_input(path, inputs)
        return str(path)
    raise OSError(name)


def _follow_lock(args: argparse.Namespace) -> _Words:
    stem = args.output.name.removesuffix(".json").removesuffix(".lock")
    directory = Path(stem)
    # A directory of an earlier fetch is found again.
    is_fetched = (directory / "enginix.json").is_file()
    return [["fetch", str(args.output), "-o", stem if is_fetched else _choose_output(stem)]]


def _follow_fetch(args: argparse.Namespace) -> _Words:
    from enginix.hub.lock import read_lock

    return [] if read_lock(args.lock).type == "dataset" else [_convert_words(args.output)]


def _convert_words(model: Path) -> list[str]:
    from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec

    derive_conversion_spec(model, ConvertOptions(), headers_only=True)
    return ["convert", str(model), "-o", _choose_output("checkpoint", model)]


def _follow_calibrate(args: argparse.Namespace) -> _Words:
    from enginix.quantize.formats import resolve_format
    from enginix.quantize.source import read_source_model

    resolve_format("fp8", architecture=read_source_model(args.model).architecture)
    name = f"{Path(args.model).resolve().name}-fp8"
    output = _choose_output(name, args.model, args.output)
    return [["quantize", str(args.model), "--format", "fp8", "--calibration", str(args.output), "-o", output]]


def _follow_quantize(args: argparse.Namespace) -> _Words:
    convert = _convert_words(args.output)
    # The comparison needs the model before quantization, which later commands do not know.
    return [convert, *_build_words(Path(convert[-1]), args.output, args.model)]


def _follow_convert(args: argparse.Namespace) -> _Words:
    from enginix.model.config import read_model_config

    if read_model_config(args.model).quantization is not None:
        return []
    return _build_words(args.output, args.model, args.model if args.quantize else None)


def _build_words(checkpoint: Path, model: Path, reference: Path | None) -> _Words:
    from enginix.kinds.planning.checkpoint_refusal import find_checkpoint_refusal

    if find_checkpoint_refusal("reference", model) is not None:
        return []
    words = ["build", str(checkpoint), "--kind", "reference", "--model", str(model)]
    words += [] if reference is None else ["--reference", str(reference)]
    inputs = [path for path in (checkpoint, model, reference) if path is not None]
    return [[*words, "-o", _choose_output("engine", *inputs)]]


def _follow_build(args: argparse.Namespace) -> _Words:
    from enginix.kinds.registry import find_kind

    kind = find_kind(args.kind)
    if kind.triton is None:
        return []
    if kind.runs_in_image:
        from enginix.manifest import read_manifest
        from enginix.runtime.table import find_runtime, require_triton

        require_triton(find_runtime(read_manifest(args.output).runtime), str(args.output))
    return [["triton-repo", str(args.output), "-o", _choose_output("repository", args.output)]]


def _follow_triton_repo(args: argparse.Namespace) -> _Words:
    from enginix.kinds.registry import is_portable
    from enginix.manifest import read_manifest
    from enginix.serve.pytriton_wheel import find_installed, find_recorded
    from enginix.serve.tritonserver import find_tritonserver

    if not is_portable(read_manifest(args.output).kind):
        return []  # served inside its runtime's image, whose files only the user knows
    make: _Words = []
    try:
        find_tritonserver(None)
    except EnginixError:
        if find_recorded() or find_installed():
            raise
        make = [["tritonserver", "-o", _choose_output("tritonserver")]]
    return [*make, ["serve", str(args.output), "--ask", "Once upon a time"]]


_SUGGESTIONS: dict[str, Callable[[argparse.Namespace], _Words]] = {
    "lock": _follow_lock,
    "fetch": _follow_fetch,
    "calibrate": _follow_calibrate,
    "quantize": _follow_quantize,
    "convert": _follow_convert,
    "build": _follow_build,
    "triton-repo": _follow_triton_repo,
}
