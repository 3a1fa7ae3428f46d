#!/usr/bin/env python3
"""Target detection, preflight and refusal on a real GPU: prints a table, exits with 1 when a line fails.

  PYTHONPATH=python python3 tests/gpu/target.py [--json FILE]

Needs the driver and the Python package; no image, no TensorRT-LLM, nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from enginix.compatibility.check import compare_with_machine
from enginix.errors import EnginixError, MachineError
from enginix.machine import driver as drivers
from enginix.machine import target
from enginix.manifest import Manifest
from enginix.runtime import preflight, table
from enginix.tables import load_table as rows

LINES: list[dict[str, Any]] = []


def line(what: str, holds: bool, figure: str = "") -> None:
    LINES.append({"what": what, "holds": holds, "figure": figure})
    show(f"{'ok  ' if holds else 'FAIL'}  {what:<66} {figure}")


def show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def timed(call: Callable[[], Any], times: int = 5) -> tuple[Any, float]:
    """The result, and the median of several runs in milliseconds."""
    spent, result = [], None
    for _ in range(times):
        begun = time.perf_counter()
        result = call()
        spent.append(1000 * (time.perf_counter() - begun))
    return result, sorted(spent)[len(spent) // 2]


def refuses(call: Callable[[], Any], *words: str) -> tuple[bool, str]:
    try:
        call()
    except EnginixError as e:
        return all(w in str(e) for w in words), str(e).splitlines()[0][:110]
    return False, "not refused"


def engine_for(machine: target.Machine, name: str, **changes: Any) -> Manifest:
    gpu = machine.gpus[0]
    runtime = table.find_runtime("trtllm-1.1.0", "tensorrt")
    at = {"name": name, "sm": gpu.sm, "gpu": gpu.name, "memory": gpu.total, "count": 1}
    needs = {"id": runtime.id, "driverFloor": machine.driver, "driver": machine.driver}
    return Manifest(
        "engine",
        "gpu-test",
        "tensorrt",
        target=at | changes.pop("target", {}),
        runtime=needs | changes.pop("runtime", {}),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    args = parser.parse_args()

    driver = drivers.find_driver()
    line(
        "the driver's libraries are found",
        driver.is_present,
        str(driver.root or f"{len(driver.libraries)} libraries"),
    )
    line(
        "device nodes are found",
        bool(drivers.list_devices()),
        ", ".join(map(str, drivers.list_devices()))[:60],
    )
    try:
        machine, spent = timed(lambda: target.probe_machine(driver))
    except MachineError as e:
        line("the GPU is detected", False, str(e).splitlines()[0])
        return 1
    gpu = machine.gpus[0]
    line(
        "the GPU is detected",
        bool(machine.gpus),
        f"{gpu.name}, SM {gpu.sm}, driver {machine.driver}, {spent:.0f} ms",
    )
    line("by NVML, without nvidia-smi", machine.source == "nvml", machine.source)

    smi = driver.program("nvidia-smi")
    if smi is not None:
        other, slow = timed(lambda: target._query_nvidia_smi(smi), 3)
        same = [
            (a.name, a.uuid, a.sm) == (b.name, b.uuid, b.sm)
            for a, b in zip(machine.gpus, other.gpus, strict=True)
        ]
        line("nvidia-smi says the same", all(same) and other.driver == machine.driver, f"{slow:.0f} ms")

    wanted = [target.find_target(n) for n in sorted(rows("gpus")["gpus"])]
    mine = [t for t in wanted if t.sm == gpu.sm and t.is_product(gpu.name)]
    line("exactly one row of gpus.json is this product", len(mine) == 1, ", ".join(t.name for t in mine))
    own = mine[0] if mine else next(t for t in wanted if t.sm == gpu.sm)
    foreign = next(t for t in wanted if t.sm != gpu.sm)
    memory = rows("gpus")["gpus"][own.name].get("memoryGB")
    if memory:
        off = gpu.total / (memory * 1e9)
        line(
            "its memory is that of the table, within a tenth",
            0.9 < off < 1.1,
            f"{gpu.total / 1e9:.1f} of {memory} GB",
        )

    def whole() -> preflight.PreflightResult:
        found = target.probe_machine(drivers.find_driver())
        seen = preflight.check_gpu(own, found, workers=1, weights=1 << 30)
        preflight.check_disk(Path(tempfile.gettempdir()), Path(tempfile.gettempdir()), 1, workspace=False)
        return seen

    seen, spent = timed(whole, 3)
    line(
        "preflight passes for this GPU, in under 2 s",
        spent < 2000,
        f"{spent:.0f} ms; {'; '.join(seen.notes)}",
    )

    def other_sm() -> None:
        preflight.check_gpu(foreign, machine, workers=1, weights=0)

    line(f"preflight refuses the target {foreign.name}", *refuses(other_sm, f"SM {foreign.sm}", gpu.name))
    line(
        "preflight refuses more workers than GPUs",
        *refuses(lambda: preflight.check_gpu(own, machine, workers=99, weights=0), "99 workers"),
    )
    line(
        "preflight refuses weights that do not fit",
        *refuses(
            lambda: preflight.check_gpu(own, machine, workers=1, weights=gpu.total * 2), "weights alone take"
        ),
    )
    newer = replace(table.find_runtime("trtllm-1.2.1"), driver="9999.0")
    line(
        "preflight refuses a driver below the runtime's floor",
        *refuses(lambda: preflight.check_driver(newer, machine), machine.driver, "9999.0"),
    )
    for name in ("trtllm-1.1.0", "trtllm-1.2.1"):
        runtime = table.find_runtime(name)
        try:
            preflight.check_driver(runtime, machine)
            show(f"      this driver serves {name}")
        except MachineError as e:
            show(f"      {e.what}")
    least = (
        next(n for n, r in rows("number_formats")["algorithms"].items() if (r["minSm"] or 0) > gpu.sm)
        if gpu.sm < 100
        else None
    )
    if least:
        line(
            f"{least} is refused on this GPU",
            *refuses(lambda: preflight.check_support(least, None, None, own), str(gpu.sm)),
        )

    fitting = engine_for(machine, own.name)
    verdict, spent = timed(lambda: compare_with_machine(fitting, target.probe_machine(driver)))
    line("an engine of this GPU runs, said in under 100 ms", verdict.runs and spent < 100, f"{spent:.0f} ms")
    for what, manifest, field in (
        ("another SM", engine_for(machine, foreign.name, target={"sm": foreign.sm}), "sm"),
        ("more GPUs", engine_for(machine, own.name, target={"count": 99}), "count"),
        (
            "a newer driver",
            engine_for(machine, own.name, runtime={"driverFloor": "9999.0", "driver": "9999.0"}),
            "driver",
        ),
    ):
        found = compare_with_machine(manifest, machine)
        fatal = [d for d in found.differences if d.fatal]
        said = f"{fatal[0].field}: built for {fatal[0].built}, here {fatal[0].live}" if fatal else "accepted"
        line(f"an engine for {what} is refused", [d.field for d in fatal] == [field], said)

    with tempfile.TemporaryDirectory() as directory:
        fitting.write(Path(directory))
        command = [sys.executable, "-m", "enginix", "check", directory]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "python")}
        run = lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: E731
        done, whole_time = timed(run)
        _, empty = timed(lambda: subprocess.run([sys.executable, "-c", ""], check=False))
        line(
            "enginix check, the whole process",
            done.returncode == 0 and "runs here" in done.stdout,
            f"{whole_time:.0f} ms, of which Python's start {empty:.0f} ms",
        )
        engine_for(machine, foreign.name, target={"sm": foreign.sm}).write(Path(directory))
        done = run()
        line(
            "enginix check refuses, exit status 1",
            done.returncode == 1,
            done.stderr.strip().splitlines()[0][:110],
        )

        # The whole command on a small checkpoint: refused for another GPU; for this one it comes as far as
        # trtllm-build, which is not installed here.
        made = Path(directory, "checkpoint")
        made.mkdir()
        model = Path(directory, "model")
        model.mkdir()
        facts = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "max_position_embeddings": 2048}
        (made / "config.json").write_text(json.dumps(facts), "utf-8")
        (made / "rank0.safetensors").write_bytes(bytes(1 << 20))
        for place in (made, model):
            (place / "tokenizer.json").write_text("{}", "utf-8")
        shape = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
        (model / "config.json").write_text(json.dumps(shape), "utf-8")
        for name, words in ((foreign.name, f"SM {foreign.sm}"), (own.name, "trtllm-build")):
            command = [
                sys.executable,
                "-m",
                "enginix",
                "build",
                str(made),
                "--kind",
                "tensorrt",
                "--model",
                str(model),
            ]
            command += [
                "--target",
                name,
                "--runtime",
                "trtllm-1.1.0",
                "--accept-driver",
                "-o",
                f"{directory}/engine",
            ]
            done, spent = timed(run, 1)
            said = [x for x in done.stderr.splitlines() if x.startswith("error")]
            line(
                f"enginix build --target {name} ends within 2 s",
                done.returncode != 0 and bool(said) and words in said[0] and spent < 2000,
                f"{spent:.0f} ms: {said[0][:100] if said else done.stderr[-200:]}",
            )
            left = [
                p.name for p in Path(directory).iterdir() if "engine" in p.name and p.name != "enginix.json"
            ]
            line("and leaves nothing", not left, ", ".join(left))

    if args.json:
        table_of = {"gpu": gpu.name, "driver": machine.driver, "cuda": machine.cuda, "lines": LINES}
        args.json.write_text(json.dumps(table_of, indent=2) + "\n", "utf-8")
    failed = [x for x in LINES if not x["holds"]]
    show(f"{len(LINES) - len(failed)} hold, {len(failed)} fail, on {gpu.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
