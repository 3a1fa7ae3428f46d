"""Pins a model and its runtime in a flake's directory, so that nix build .#NAME-engine works there.

  nix run github:enginix/enginix#pin -- qwen3-32b-nvfp4                 a model of the catalogue
  nix run github:enginix/enginix#pin -- Qwen/Qwen3-8B                   any model, kind reference
  nix run github:enginix/enginix#pin -- Qwen/Qwen3-8B --target h200     any model, kind tensorrt

writes NAME.lock.json (enginix lock), RUNTIME.pin.json (enginix runtime pin) and, for a model that is not of
the catalogue, NAME.engine.json with the arguments of mkEngine; all are files to look at and to commit. Where
there is no flake.nix, it writes one that has the packages of everything pinned beside it (mkPinned). In a
checkout of enginix they go to nix/catalogue. What is there is kept; enginix lock --update moves a lock.

No weight is downloaded. An image is: to hash it, its layers are read once, tens of GB. --no-runtime leaves
that to a machine closer to the registry.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginix import console
from enginix.cli.option_shapes import add_flag, add_path
from enginix.errors import EXIT_OK, MachineError, UsageError
from enginix.machine.system import detect_system
from enginix.optional_libraries import PACKAGE, locate_flake
from enginix.runtime.table import DEFAULT_RUNTIME
from enginix.wording import find_nearest, list_known

KINDS = ("reference", "tensorrt", "llmapi")
CATALOGUE_FOLDER = Path("nix") / "catalogue"
FLAKE = """{
  description = "Models, pinned and served";

  inputs.enginix.url = "github:enginix/enginix";

  outputs = { enginix, ... }: {
    # NAME-model, NAME-engine, NAME-triton-server, … of everything that is pinned beside this file.
    packages.x86_64-linux = enginix.legacyPackages.x86_64-linux.mkPinned { directory = ./.; };
  };
}
"""


@dataclass(frozen=True)
class PinnedModel:
    """A model to pin.

    Attributes:
        name: of the packages; without dots, at which Nix splits names.
        revision: branch, tag or commit.
        runtime: whose image is pinned, too; None for kinds without one.
        engine: arguments of mkEngine; None for a model of the catalogue, which has them.
    """

    name: str
    repo: str
    revision: str
    runtime: str | None
    engine: dict[str, Any] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name in the catalogue, or owner/name of the Hub")
    add_path(parser, "--directory", "DIR", "the flake's directory (this one)", default=Path())
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (main)")
    parser.add_argument(
        "--kind", choices=KINDS, help="kind of engine (tensorrt with --target, else reference)"
    )
    parser.add_argument("--target", metavar="GPU", help="GPU of the engine (enginix target)")
    parser.add_argument("--runtime", metavar="ID", help=f"enginix runtime list ({DEFAULT_RUNTIME})")
    add_flag(parser, "--no-runtime", "do not pin the runtime's image")
    parser.add_argument(
        "--system", default=detect_system(), help="platform of the image, in Nix's words (this machine's)"
    )


def run(args: argparse.Namespace) -> int:
    from enginix.files import dump_json, write_text
    from enginix.hub.lock import Selection, read_lock
    from enginix.hub.locking import make_lock

    model = _choose_model(args)
    is_checkout = (args.directory / CATALOGUE_FOLDER / "entries.nix").is_file()
    folder = args.directory / CATALOGUE_FOLDER if is_checkout else args.directory
    engine_file = folder / f"{model.name}.engine.json"
    if model.engine is not None and engine_file.exists():
        model = _keep_engine(model, engine_file, args)
    pin_file = None if model.runtime is None else folder / f"{model.runtime}.pin.json"
    if pin_file is not None and not pin_file.exists() and not args.no_runtime:
        _require_image_tools(model.runtime, args.system)
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        write_text(folder / name, text)
        written.append(folder / name)
        console.print_message(f"wrote {folder / name}")

    lock_file = folder / f"{model.name}.lock.json"
    if lock_file.exists():
        lock = read_lock(lock_file)
        if lock.repo != model.repo:
            raise UsageError(
                f"pins {lock.repo}, not {model.repo}", where=lock_file, fix="choose another --directory"
            )
        console.print_message(f"{lock_file}: {lock.repo} at {lock.revision[:12]} already")
    else:
        new = make_lock(model.repo, Selection(revision=model.revision))
        console.print_notes(new.notes)
        write(lock_file.name, new.lock.dump())
    if model.engine is not None and engine_file.exists():
        console.print_message(f"{engine_file}: here already, kept")
    elif model.engine is not None:
        write(engine_file.name, dump_json(model.engine))
    flake = args.directory / "flake.nix"
    if not is_checkout and not flake.exists():
        write(flake.name, FLAKE)
    elif not is_checkout and "mkPinned" not in flake.read_text("utf-8", "replace"):
        console.print_message(
            f"note: {flake} has no mkPinned; add to its outputs: packages.x86_64-linux = "
            "enginix.legacyPackages.x86_64-linux.mkPinned { directory = ./.; };"
        )
    if pin_file is not None and model.runtime is not None and not args.no_runtime:
        if pin_file.exists():
            console.print_message(f"{pin_file}: pinned already")
        else:
            from enginix.registry.pin import pin_image

            # Last: it takes longest, and the next run goes on here.
            write(pin_file.name, dump_json(pin_image(model.runtime, None, args.system)))
    files = [os.path.relpath(path, args.directory) for path in written]
    is_pinned = pin_file is None or pin_file.exists()
    steps = _list_next_steps(args, files, None if not is_pinned else f"{model.name}-engine")
    console.print_result(
        {"name": model.name, "repo": model.repo, "written": files, "next": steps},
        "\n".join(f"next: {step}" for step in steps),
    )
    return EXIT_OK


def _list_next_steps(args: argparse.Namespace, files: list[str], package: str | None) -> list[str]:
    """Return the commands that follow, as they work from this directory.

    Args:
        package: what can be built now; None while the runtime's image is not pinned.
    """
    directory = Path(os.path.realpath(args.directory))
    is_here = directory == Path(os.path.realpath("."))
    is_in_git = any((parent / ".git").exists() for parent in (directory, *directory.parents))
    # A flake in a git repository sees what git tracks; any other sees every file.
    place = [] if is_here else ["-C", str(directory)]
    steps = [shlex.join(["git", *place, "add", *files])] if files and is_in_git else []
    if package is None:
        where = [] if is_here else ["--directory", str(directory)]
        return [*steps, shlex.join(["enginix", "pin", args.model, *where])]
    return [*steps, f"nix build {shlex.quote('.' if is_here else str(directory))}#{package}"]


def _keep_engine(model: PinnedModel, file: Path, args: argparse.Namespace) -> PinnedModel:
    """Return the model with the engine that its file has; refuse options that say something else."""
    try:
        present = json.loads(file.read_text("utf-8"))
    except ValueError as e:
        raise UsageError(f"is not JSON: {e}", where=file, fix="mend it, or remove it") from e
    if not isinstance(present, dict):
        raise UsageError("has no arguments of mkEngine", where=file, fix="mend it, or remove it")
    given = {
        "kind": args.kind or (args.target and "tensorrt"),
        "target": args.target,
        "runtime": args.runtime,
    }
    for key, word in given.items():
        chosen = (model.engine or {}).get(key)
        if word is not None and present.get(key) != chosen:
            raise UsageError(
                f"has {key} {present.get(key)!r}, not {chosen!r}; it is kept as it is",
                where=file,
                fix="edit it, remove it, or choose another --directory",
            )
    default = DEFAULT_RUNTIME if present.get("kind") in ("tensorrt", "llmapi") else None
    return replace(model, engine=present, runtime=present.get("runtime") or default)


def _require_image_tools(runtime: str | None, system: str) -> None:
    """Refuse before anything is written what pin_image would refuse at the end."""
    from enginix.registry import pin as registry

    if runtime is None:
        return
    registry.choose_image(runtime, None, system)
    try:
        registry.require_crane()
    except MachineError as e:
        raise MachineError(
            e.what, where=e.where, fix=f"{e.fix}; or pass --no-runtime and pin {runtime} elsewhere"
        ) from e


def read_catalogue() -> dict[str, dict[str, Any]]:
    """Return the catalogue that ``nix run .#pin`` brings: name → repo, revision, runtime; else nothing."""
    file = os.environ.get("ENGINIX_CATALOGUE")
    rows = json.loads(Path(file).read_text("utf-8")) if file else {}
    return rows if isinstance(rows, dict) else {}


def _require_known_memory(target_name: str) -> None:
    """Refuse a target that evaluation would refuse: its memory decides whether the model fits."""
    from enginix.machine.gpu_table import find_gpu

    if not find_gpu(target_name).memory:
        raise UsageError(
            f"the memory of {target_name} is not in the table of GPUs",
            fix=f"say it in gigabytes: --target {target_name}-16gb for 16",
        )


def _suggest_from_checkout(name: str) -> str:
    """Return the command that pins a name of the catalogue, which this program does not bring."""
    entries = PACKAGE.parents[1] / CATALOGUE_FOLDER / "entries.nix"
    names = re.findall(r"^  (\S+) = ", entries.read_text("utf-8"), re.M) if entries.is_file() else []
    return f"nix run {locate_flake()}#pin -- {find_nearest(name, names) or 'NAME'} knows the catalogue"


def _choose_model(args: argparse.Namespace) -> PinnedModel:
    from enginix.hub.hub_urls import choose_revision, parse_hub_source
    from enginix.up.stages import name_model

    catalogue = read_catalogue()
    has_options = args.kind is not None or args.target is not None or args.runtime is not None
    source = parse_hub_source(args.model)
    by_repo = {row["repo"].lower(): name for name, row in catalogue.items()}
    name = args.model if args.model in catalogue else by_repo.get(source.name.lower())
    if name is not None and not has_options:
        row = catalogue[name]
        return PinnedModel(
            name, row["repo"], args.revision or row["revision"] or "main", row["runtime"], None
        )
    if name is not None and name == args.model:
        raise UsageError(
            f"{name} of the catalogue has its kind, target and runtime",
            fix=f"leave the options out, or pass the repository: {catalogue[name]['repo']}",
        )
    if "/" not in source.name:
        known = list_known(args.model, catalogue) if catalogue else _suggest_from_checkout(args.model)
        raise UsageError(
            f"{args.model!r} is neither in the catalogue nor owner/name", fix=f"{known}; or pass owner/name"
        )
    kind = args.kind or ("reference" if args.target is None else "tensorrt")
    if (kind == "reference") != (args.target is None):
        raise UsageError(
            f"kind {kind} {'has no' if kind == 'reference' else 'needs a'} --target",
            fix="enginix target lists GPUs" if kind != "reference" else "leave --target out",
        )
    engine: dict[str, Any] = {"kind": kind}
    runtime = None
    if kind != "reference":
        from enginix.machine.target import find_target
        from enginix.runtime.preflight import require_kind_support
        from enginix.runtime.table import find_runtime

        stack, target = find_runtime(args.runtime or DEFAULT_RUNTIME, kind), find_target(args.target)
        if not stack.is_verified:
            raise UsageError(
                f"--runtime {args.runtime} describes a runtime, and a pinned engine names one of the table",
                fix="enginix lock the model, and pass mkEngine runtime = mkRuntime { like = …; … } in your "
                "flake (docs/how-to/build-engines.md)",
            )
        require_kind_support(kind, target, stack.version)
        _require_known_memory(target.name)
        runtime = stack.id
        engine |= {"target": target.name, "runtime": runtime}
    # A name of its own beside one of the catalogue, whose file stays what it is.
    own = name_model(source.name).replace(".", "_")
    own = f"{own}-{engine.get('target', kind)}" if own in catalogue else own
    return PinnedModel(own, source.name, choose_revision(source, args.revision) or "main", runtime, engine)
