"""``enginix gate`` of an engine of kind ``rtx``: ask it here, and say what to report."""

from __future__ import annotations

import time
from collections.abc import Callable

from enginix import console
from enginix.compatibility.check import check_before_start, require_versions
from enginix.files import sha256_file
from enginix.kinds.gating.gate_asking import GateAsking, GateReport
from enginix.kinds.rtx.plan_builder import import_tensorrt_rtx
from enginix.kinds.rtx_serving.rtx_asker import ask_rtx_engine
from enginix.kinds.rtx_serving.start import INTERPRETED, NEVER_EXECUTED
from enginix.kinds.rtx_serving.step_backend import load_step_backend
from enginix.machine import driver as drivers
from enginix.machine.target import probe_machine
from enginix.manifest import MANIFEST_FILE


def ask_gated_engine(asking: GateAsking, write_questions: Callable[[], object]) -> GateReport:
    """Ask an engine by NVIDIA's runtime, or by the interpreter; see :class:`GateAsker`.

    Raises:
        Mismatch: the engine is for another GPU, driver or version of the library.
        MachineError: TensorRT for RTX is of another version than this package knows.
        EnginixError: the engine cannot be executed here; has the reason.
    """
    console.print_message(f"note: {NEVER_EXECUTED if asking.checkpoint is None else INTERPRETED}")
    live, machine = {"tensorrtRtx": import_tensorrt_rtx().__version__}, {}
    if asking.checkpoint is not None:  # the interpreter runs on any machine
        require_versions(asking.manifest, asking.engine, live)
    else:
        check_before_start(asking.manifest, asking.engine, asking.driver, live=live)
        machine = {"driver": probe_machine(drivers.find_driver(asking.driver)).driver}
    write_questions()
    begun = time.monotonic()
    backend = load_step_backend(asking.engine, asking.checkpoint)
    loaded = time.monotonic() - begun
    described, shape, model = backend.describe(), backend.shape, asking.manifest.model
    answers = asking.questions / "said"
    times = ask_rtx_engine(asking.engine, asking.questions, answers, backend, asking.gates, asking.stall)
    facts = {
        "engine": f"{asking.manifest.name}, {sha256_file(asking.engine / MANIFEST_FILE)[:16]}",
        "model": f"{model.get('architecture')}, {model.get('quantization') or 'not quantized'}",
        "sizes": f"{shape.slots} slots, steps of {shape.step_tokens} tokens, {shape.max_seq_len} tokens",
        **described,
        **machine,
        "loaded": f"{loaded:.1f} s",
        "first step": f"{times.first_step:.2f} s",
        "a step": f"{times.step * 1000:.1f} ms, mean of {times.steps}",
    }
    return GateReport(answers, facts)
