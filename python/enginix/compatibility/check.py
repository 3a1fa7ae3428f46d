"""Compare an engine's manifest with this machine's GPU, driver and runtime, in well under 100 ms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from enginix import console, manifest
from enginix.errors import EXIT_CHECK_FAILED, EnginixError, MachineError, ManifestError
from enginix.machine import driver as drivers
from enginix.machine.target import Machine, is_version_at_least, probe_machine
from enginix.manifest import Manifest
from enginix.tables import load_table

# The kinds' descriptions are no part of what builds an Edge-LLM engine, so that a changed description builds
# none again: they and this module read one table.
_KINDS = load_table("engine_kinds")["kinds"]
PORTABLE_KINDS = tuple(name for name, row in _KINDS.items() if row["isPortable"])
COMPILED_KINDS = tuple(name for name, row in _KINDS.items() if row["isCompiled"])
# Nothing is compiled ahead: another GPU is untested, not impossible.
UNCOMPILED_KINDS = tuple(name for name in _KINDS if name not in (*PORTABLE_KINDS, *COMPILED_KINDS))
# Versions of a live runtime that are compared with the manifest's, and whether a difference is fatal: an
# engine runs on the TensorRT that built it alone; collectives are the runtime's own.
COMPARED_VERSIONS = {
    "tensorrtLlm": True,
    "edgellm": True,
    "tensorrt": True,
    "tensorrtRtx": True,
    "nccl": False,
}


# Field → what to do where it differs.
_FIXES = {
    "count": "serve it on a machine with as many GPUs, or build it with fewer ranks",
    "driver": "update the driver",
    "gpu": "it runs, but its tactics were timed on another GPU: build it here",
    "memory": "the KV cache is smaller here: compare enginix plan",
}


class Mismatch(EnginixError):
    """The engine would not run on this machine, or not as it was built."""

    exit_code = EXIT_CHECK_FAILED
    kind = "mismatch"


@dataclass(frozen=True)
class Difference:
    """A field that differs; ``fatal`` when the engine would not run."""

    field: str
    built: Any
    live: Any
    fatal: bool
    do: str


@dataclass(frozen=True)
class Verdict:
    """The differences between an engine and this machine."""

    engine: Manifest
    differences: tuple[Difference, ...]

    @property
    def runs(self) -> bool:
        return not any(d.fatal for d in self.differences)

    def as_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine.name,
            "kind": self.engine.kind,
            "runs": self.runs,
            "differences": [asdict(d) for d in self.differences],
        }

    def text(self) -> str:
        lines = [f"{self.engine.name}: {'runs here' if self.runs else 'does not run here'}"]
        for d in self.differences:
            lines.append(
                f"  {'error' if d.fatal else 'note'}: {d.field}: built for {d.built}, here {d.live}: {d.do}"
            )
        return "\n".join(lines)


def compare_with_machine(
    engine: Manifest,
    machine: Machine | None,
    runtime: str | None = None,
    live: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare the fields of a manifest that this machine must meet.

    Args:
        machine: GPUs and driver of this machine; None without a driver.
        runtime: the runtime that will execute the engine; None if it is the engine's own.
        live: versions that this runtime has, by their names in the manifest.
    """
    if engine.kind not in (*PORTABLE_KINDS, *COMPILED_KINDS, *UNCOMPILED_KINDS):
        raise ManifestError(f"kind is {engine.kind!r}", where=engine.name, fix="build this engine again")
    differences: list[Difference] = []
    target, runtime_fields = engine.target, engine.runtime

    def differs(field: str, built: Any, live: Any, do: str = "", fatal: bool = True) -> None:
        differences.append(Difference(field, built, live, fatal, do or _FIXES[field]))

    if runtime is not None and runtime_fields.get("id") is not None and runtime != runtime_fields["id"]:
        do = f"serve it with {runtime_fields['id']}, or build it for {runtime}"
        differs("runtime", runtime_fields["id"], runtime, do)
    if runtime_fields.get("verified", True) is False:
        do = f"its user describes it, like {runtime_fields.get('like')}: judge its answers with gates"
        differs("runtime", runtime_fields.get("id"), manifest.NOT_VERIFIED, do, fatal=False)
    differences += _compare_versions(engine, live or {})
    if engine.kind in PORTABLE_KINDS or (not target and engine.kind in UNCOMPILED_KINDS):
        return Verdict(engine, tuple(differences))
    if not target:
        raise ManifestError("target is empty", where="target", fix="build this engine again")
    sms = _read_target_sms(target)
    if machine is None:
        built = target.get("gpu") or target.get("name") or f"SM {', '.join(map(str, sms or ()))}"
        differs("gpu", built, "no NVIDIA driver", "load the driver, or serve it elsewhere")
        return Verdict(engine, tuple(differences))
    sm = target.get("sm") if sms is None else list(sms)
    fitting = [g for g in machine.gpus if (g.sm == sm if sms is None else g.sm in sms)]
    if not fitting:
        gpu_names = ", ".join(sorted({f"{g.name} (SM {g.sm})" for g in machine.gpus}))
        rebuild = _explain_rebuild(engine, machine.gpus[0].sm)
        differs("sm", sm, gpu_names, rebuild, fatal=engine.kind in COMPILED_KINDS)
    elif len(fitting) < (_read_field(engine, "target", "count", int) or 1):
        differs("count", target["count"], len(fitting))
    elif target.get("gpu") is not None and all(g.name != target["gpu"] for g in fitting):
        differs("gpu", target["gpu"], fitting[0].name, fatal=False)
    driver_floor = _read_field(engine, "runtime", "driverFloor", str)
    if driver_floor is not None and not is_version_at_least(machine.driver, driver_floor):
        has_build_driver = is_version_at_least(
            machine.driver, _read_field(engine, "runtime", "driver", str) or driver_floor
        )
        differs("driver", f"{driver_floor} or later", machine.driver, fatal=not has_build_driver)
    memory = _read_field(engine, "target", "memory", int)
    if memory is not None and fitting and max(g.total for g in fitting) < memory * 0.95:
        differs("memory", memory, max(g.total for g in fitting), fatal=False)
    return Verdict(engine, tuple(differences))


def _explain_rebuild(engine: Manifest, sm: int) -> str:
    """Return what to do for a GPU that an engine is not for: another build, or another kind."""
    sms = [known for system in _KINDS[engine.kind]["sms"].values() for known in system]
    argument = "target"
    if _read_target_sms(engine.target) is not None:
        argument = "targets"
        sms = load_table("rtx")["formats"]["taken"].get(engine.model.get("quantization") or "NO_QUANT", sms)
    if sm in sms:
        return f"build it for this GPU: mkEngine {{ {argument} = …; }} with SM {sm}"
    return (
        f"kind {engine.kind} builds none like it for SM {sm}: use another GPU, or a kind that "
        f"enginix compare MODEL --target sm{sm} lists"
    )


def _compare_versions(engine: Manifest, live: Mapping[str, str]) -> list[Difference]:
    differences = []
    for name, fatal in COMPARED_VERSIONS.items():
        built, here = _read_field(engine, "runtime", name, str) or "", live.get(name)
        # A range in the table is not a version to compare.
        if built[:1].isdigit() and here not in (None, built):
            do = f"serve it with {name} {built}, or build it again with this runtime"
            is_fatal = fatal and engine.kind not in UNCOMPILED_KINDS
            differences.append(Difference(name, built, here, is_fatal, do))
    return differences


def _read_target_sms(target: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the SMs of an engine that is for several (kind rtx); None for one of one GPU."""
    sms = target.get("sms")
    if sms is None:
        return None
    if not isinstance(sms, list) or not sms or any(type(sm) is not int for sm in sms):
        raise ManifestError(f"target.sms is {sms!r}", fix="build this engine again")
    return tuple(sms)


def _read_field(engine: Manifest, section: str, name: str, kind: type) -> Any:
    value = getattr(engine, section).get(name)
    if value is None or type(value) is kind:
        return value
    raise ManifestError(f"{section}.{name} is {value!r}", fix="build this engine again")


def require_runnable(
    directory: Path,
    machine: Machine | None,
    runtime: str | None = None,
    live: Mapping[str, str] | None = None,
    count: int | None = None,
) -> Verdict:
    """Return the verdict, if the engine runs here.

    Args:
        count: GPUs that it needs here, where other machines have the rest.

    Raises:
        ManifestError: the directory is not an engine.
        Mismatch: the engine does not run here; names every differing field and what to do.
    """
    engine_manifest = manifest.read_manifest(directory, "engine")
    if count is not None:
        engine_manifest = replace(engine_manifest, target={**engine_manifest.target, "count": count})
    return _require_match(compare_with_machine(engine_manifest, machine, runtime, live), directory)


def check_before_start(
    engine_manifest: Manifest,
    directory: Path,
    driver: Path | None = None,
    live: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare this machine's GPU and runtime with the manifest of an engine, or of a repository made of it,
    before a server starts. Differences that are not fatal are printed.

    Args:
        driver: the GPU driver's root; None finds it.

    Raises:
        ManifestError: a field cannot be compared.
        Mismatch: the engine does not run here; names every differing field and what to rebuild.
    """
    machine: Machine | None = None
    if engine_manifest.kind not in PORTABLE_KINDS:
        try:
            machine = probe_machine(drivers.find_driver(driver))
        except MachineError as e:
            console.print_message(f"note: {e.what}")
    verdict = _require_match(compare_with_machine(engine_manifest, machine, live=live), directory)
    for d in verdict.differences:
        console.print_message(f"note: {d.field}: built for {d.built}, here {d.live}: {d.do}")
    return verdict


def require_versions(engine_manifest: Manifest, directory: Path, live: Mapping[str, str]) -> None:
    """Compare versions alone, for runtimes that tell them only by starting.

    Raises:
        Mismatch: the engine was built with another version.
    """
    _require_match(Verdict(engine_manifest, tuple(_compare_versions(engine_manifest, live))), directory)


def _require_match(verdict: Verdict, directory: Path) -> Verdict:
    if not verdict.runs:
        fatal_differences = [d for d in verdict.differences if d.fatal]
        raise Mismatch(
            "; ".join(f"{d.field}: built for {d.built}, here {d.live}" for d in fatal_differences),
            where=directory,
            fix="; ".join(d.do for d in fatal_differences),
        )
    return verdict
