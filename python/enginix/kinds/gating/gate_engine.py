"""``enginix gate`` for engines with a runtime of their own: ask the engine in its runtime, then judge."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix import device as devices
from enginix.errors import MachineError, UsageError
from enginix.evaluation.engine_judgement import gated_engine, judge_answers
from enginix.evaluation.engine_protocol import engine_questions
from enginix.evaluation.judgement import judge, run
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import question_builder, reference_asker
from enginix.evaluation.reference_answers.exact_answers import require_answered
from enginix.integrity import require_unchanged
from enginix.kinds.gating.gate_asking import GateAsker, GateAsking, GateReport
from enginix.kinds.registry import find_kind, load_hook
from enginix.manifest import Manifest
from enginix.output_path import require_absent
from enginix.report import evidence
from enginix.wording import count_noun

if TYPE_CHECKING:
    from enginix.evaluation.reference_answers.hf import TransformersTokenizer
    from enginix.evaluation.reference_answers.material import Material

    LoadedMaterial = tuple[Material, TransformersTokenizer]


def run_engine_gates(args: argparse.Namespace, engine_manifest: Manifest) -> int:
    """Ask the engine unless --said has its answers, judge the answers, and write the results.

    Raises:
        MachineError: the engine's runtime or the device is missing.
        GateError: a gate failed, or the reference is missing.
        UsageError: a gate or an argument does not fit the engine.
    """
    kind = find_kind(engine_manifest.kind)
    if args.interpreter is not None and not kind.has_interpreter:
        raise UsageError(
            f"an engine of kind {engine_manifest.kind} has no interpreter",
            where="--interpreter",
            fix="leave it out",
        )
    requested_gates = None if args.gates is None else judge.parse_gates(args.gates)
    ready = kept_answers.is_answers(args.reference)
    if ready and args.model is None:
        raise UsageError("answers have no tokenizer", fix="pass the model's directory with --model")
    model = args.model or args.reference
    if args.output is not None:
        require_absent(args.output)
    # Refuse unknown gates and bounds before the engine is asked, which takes a GPU.
    rows = judge_answers.resolve_requested_bounds(engine_manifest, requested_gates)
    if rows and not ready:
        devices.find_device(args.device)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enginix-gate-")))
        reference, answers_directory = args.reference, args.said
        report: GateReport | None = None
        if rows and answers_directory is None and kind.gate_asker is not None:
            report = _ask_in_this_python(args, kind.gate_asker, engine_manifest, model, work, rows)
            answers_directory = report.answers
        if rows and answers_directory is None:
            _require_runtime(args, engine_manifest)
        # The reference before the engine: questions that cannot judge are refused before its GPU works.
        if rows and not ready:
            reference = work / "reference"
            reference.mkdir()
            reference_asker.keep_reference_answers(model, reference, args.device, args.questions)
        loaded = question_builder.load_model_material(model, args.questions) if rows else None
        if loaded is not None and ready:
            answers = kept_answers.read_reference_answers(args.reference)
            kept_answers.require_same_material(answers, loaded[0])
            # Own questions of which the reference answers none judge nothing.
            require_answered(args.questions, loaded[0].questions, answers.replies, answers.ends, loaded[1])
        if loaded is not None and answers_directory is None:
            answers_directory = _ask_engine(args, engine_manifest, loaded, model, work)
        case = judge_answers.AnswerGateInputs(
            args.engine, answers_directory or work, model, reference, requested_gates, args.questions, loaded
        )
        outcomes, gate_evidence = judge_answers.judge_engine_answers(case)
        for outcome in outcomes:
            console.print_message(
                f"gate {outcome.gate}: {'passed' if outcome.passed else 'FAILED'}, {outcome.summary}"
            )
        if report is not None:
            for line in report.list_lines(outcomes):
                console.print_message(line)
        if args.output is not None and not args.gated_engine:
            evidence.write_evidence_directory(args.output, args.engine, engine_manifest.name, gate_evidence)
        if outcomes:
            run.require_gates_passed(outcomes)
        # After the gates, which tell what a change does.
        require_unchanged(args.engine)
        if args.output is not None and args.gated_engine:
            golden = judge_answers.find_golden_answer(case) if outcomes else None
            gated_engine.write_gated_engine(
                args.engine,
                args.output,
                outcomes,
                gate_evidence,
                golden,
                answers_directory=answers_directory if outcomes else None,
                checkpoint=args.gated_checkpoint,
            )
    if not outcomes and args.gated_checkpoint is None:
        console.print_message("note: not gated")
    verdicts = judge.gate_verdicts(outcomes) or "not gated"
    text = f"{args.engine}: " + (f"{count_noun(len(outcomes), 'gate')} passed" if outcomes else "not gated")
    console.print_result({"engine": str(args.engine), "gates": verdicts}, text)
    return 0


def _ask_engine(
    args: argparse.Namespace, engine_manifest: Manifest, loaded: LoadedMaterial, model: Path, work: Path
) -> Path:
    engine_questions.write_engine_questions(question_builder.convert_material(model, *loaded), work)
    answers_directory = work / "said"
    stall = args.stall_minutes * 60
    if find_kind(engine_manifest.kind).runs_in_image:
        from enginix.kinds.trtllm import trtllm_asker

        trtllm_options = trtllm_asker.TrtllmAskOptions(args.rootfs, args.driver, args.pin, stall)
        trtllm_asker.ask_trtllm_engine(args.engine, work, answers_directory, trtllm_options)
    else:
        from enginix.kinds.edgellm import edgellm_asker

        paths = (args.engine, model, work, answers_directory)
        edgellm_asker.ask_edgellm_engine(*paths, python=args.python, driver=args.driver, stall=stall)
    return answers_directory


def _ask_in_this_python(
    args: argparse.Namespace,
    asker: str,
    engine_manifest: Manifest,
    model: Path,
    work: Path,
    gates: Collection[str],
) -> GateReport:
    """Ask an engine of a kind that this Python executes."""
    module: GateAsker = load_hook(asker)
    asking = GateAsking(
        engine=args.engine,
        manifest=engine_manifest,
        questions=work,
        checkpoint=args.interpreter,
        driver=args.driver,
        gates=gates,
        stall=args.stall_minutes * 60,
    )

    def write_questions() -> None:
        questions = question_builder.build_engine_questions(model, args.questions)
        engine_questions.write_engine_questions(questions, work)

    return module.ask_gated_engine(asking, write_questions)


def _require_runtime(args: argparse.Namespace, engine_manifest: Manifest) -> None:
    """Raise an error that says where to run this, if the engine's runtime is not here."""
    runs_in_image = find_kind(engine_manifest.kind).runs_in_image
    package = "tensorrt_llm" if runs_in_image else "experimental.server"
    if runs_in_image and args.rootfs is not None:
        return
    python = str(args.python or shutil.which("python3") or "python3")
    probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({package.split('.')[0]!r}) is None)"
    with contextlib.suppress(OSError):
        if subprocess.run([python, "-c", probe], check=False, capture_output=True, cwd="/").returncode == 0:
            return
    runtime = engine_manifest.runtime.get("id") or "tensorrt-edgellm"
    gpu = engine_manifest.target.get("name") or engine_manifest.target.get("gpu")
    runtime_option = f"--rootfs, the root file system of {runtime}" if runs_in_image else "--python FILE"
    raise MachineError(
        f"an engine of kind {engine_manifest.kind} is executed by {runtime} on {gpu or 'its GPU'}, "
        "which is not here",
        where=args.engine,
        fix=f"pass {runtime_option}; or run this inside a container of that image on that machine; or let "
        f'Nix do it there: mkEngine {{ kind = "{engine_manifest.kind}"; }} gates by default; or pass --said '
        "with what it said there (passthru.answers)",
    )
