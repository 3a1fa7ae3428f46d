"""``enginix gate`` for engines of other runtimes: asked here where the runtime is, then judged."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from enginix import console
from enginix import device as devices
from enginix.errors import MachineError, UsageError
from enginix.files import check_free
from enginix.gates import answers as kept_answers
from enginix.gates import asking, judge, outside_ask, outside_asked, outside_judge, outside_result, run
from enginix.manifest import Manifest
from enginix.report import evidence
from enginix.wording import counted


def gate(args: argparse.Namespace, made: Manifest) -> int:
    """Asks where nobody has, judges, writes.

    Raises:
        MachineError: the engine's runtime is not here, or no such device.
        GateError: a gate failed, or the reference is missing.
        UsageError: a gate or an argument that does not fit.
    """
    wanted = None if args.gates is None else judge.parse(args.gates)
    ready = (args.reference / kept_answers.FILE).is_file()
    if ready and args.model is None:
        raise UsageError("answers have no tokenizer", fix="pass the model's directory with --model")
    model = args.model or args.reference
    if args.output is not None:
        check_free(args.output)
    # Before anything is asked, which takes a GPU: a gate or bound that does not exist.
    rows = outside_judge.wanted_bounds(made, wanted)
    if rows and not ready:
        devices.find(args.device)
    with contextlib.ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="enginix-gate-")))
        reference, said = args.reference, args.said
        if rows and said is None:
            said = _asked(args, made, model, work)
        if rows and not ready:
            reference = work / "reference"
            reference.mkdir()
            asking.keep(model, reference, args.device, args.questions)
        case = outside_judge.Case(args.engine, said or work, model, reference, wanted, args.questions)
        outcomes, told = outside_judge.judge(case)
        for outcome in outcomes:
            console.say(f"gate {outcome.gate}: {'passed' if outcome.passed else 'FAILED'}, {outcome.summary}")
        if args.output is not None and not args.gated_engine:
            evidence.write(args.output, made.name, told)
        if outcomes:
            run.require(outcomes)
        if args.output is not None and args.gated_engine:
            golden = outside_judge.golden(case) if outcomes else None
            outside_result.write(
                args.engine,
                args.output,
                outcomes,
                told,
                golden,
                said=said if outcomes else None,
                checkpoint=args.gated_checkpoint,
            )
    if not outcomes and args.gated_checkpoint is None:
        console.say("note: not gated")
    verdicts = judge.verdicts(outcomes) or "not gated"
    text = f"{args.engine}: " + (f"{counted(len(outcomes), 'gate')} passed" if outcomes else "not gated")
    console.result({"engine": str(args.engine), "gates": verdicts}, text, as_json=args.json)
    return 0


def _asked(args: argparse.Namespace, made: Manifest, model: Path, work: Path) -> Path:
    _require_runtime(args, made)
    outside_asked.write(outside_ask.ask(model, args.questions), work)
    said = work / "said"
    stall = args.stall_minutes * 60
    if made.kind == "edgellm":
        from enginix.gates import outside_edgellm

        place = outside_edgellm.Where(args.python, args.driver, stall)
        outside_edgellm.ask(args.engine, model, work, said, place)
    else:
        from enginix.gates import outside_run

        where = outside_run.Where(args.rootfs, args.driver, args.pin, stall)
        outside_run.ask(args.engine, work, said, where)
    return said


def _require_runtime(args: argparse.Namespace, made: Manifest) -> None:
    """Says where to run this, if not here."""
    package = "experimental.server" if made.kind == "edgellm" else "tensorrt_llm"
    if made.kind != "edgellm" and args.rootfs is not None:
        return
    python = str(args.python or shutil.which("python3") or "python3")
    probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({package.split('.')[0]!r}) is None)"
    with contextlib.suppress(OSError):
        if subprocess.run([python, "-c", probe], check=False, capture_output=True, cwd="/").returncode == 0:
            return
    runtime, gpu = (
        made.runtime.get("id") or "tensorrt-edgellm",
        made.target.get("name") or made.target.get("gpu"),
    )
    here = "--python FILE" if made.kind == "edgellm" else f"--rootfs, the root file system of {runtime}"
    raise MachineError(
        f"an engine of kind {made.kind} is executed by {runtime} on {gpu or 'its GPU'}, which is not here",
        where=str(args.engine),
        fix=f"pass {here}; or run this inside a container of that image on that machine; or let Nix do it "
        f'there: mkEngine {{ kind = "{made.kind}"; }} gates by default; or pass --said with what it said '
        "there (passthru.answers)",
    )
