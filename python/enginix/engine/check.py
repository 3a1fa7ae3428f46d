"""Whether an engine runs here: its manifest against the live GPU, driver and runtime, in well under 100
ms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.engine.target import Machine, version_at_least
from enginix.errors import EXIT_NO, EnginixError, ManifestError
from enginix.manifest import Manifest

EVERYWHERE = ("reference",)


class Mismatch(EnginixError):
    """An engine that would not run on this machine, or not as it was built."""

    exit_code = EXIT_NO
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
    """What was compared and what differs."""

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


def compare(engine: Manifest, machine: Machine | None, runtime: str | None = None) -> Verdict:
    """The fields of a manifest that this machine must meet.

    Args:
        machine: what the driver tells; None where there is none.
        runtime: the runtime that is to execute it; None where the caller brings the engine's own.
    """
    found: list[Difference] = []
    target, wanted = engine.target, engine.runtime

    def differs(field: str, built: Any, live: Any, do: str, fatal: bool = True) -> None:
        found.append(Difference(field, built, live, fatal, do))

    if runtime is not None and wanted.get("id") is not None and runtime != wanted["id"]:
        differs("runtime", wanted["id"], runtime, f"serve it with {wanted['id']}, or build it for {runtime}")
    if engine.kind in EVERYWHERE or not target:
        return Verdict(engine, tuple(found))
    if machine is None:
        differs(
            "gpu",
            target.get("gpu") or target.get("name"),
            "no NVIDIA driver",
            "load the driver, or serve it elsewhere",
        )
        return Verdict(engine, tuple(found))
    sm = target.get("sm")
    fitting = [g for g in machine.gpus if g.sm == sm]
    if not fitting:
        have = ", ".join(sorted({f"{g.name} (SM {g.sm})" for g in machine.gpus}))
        rebuild = f"build it for this GPU: mkEngine {{ target = …; }} with SM {machine.gpus[0].sm}"
        # The PyTorch backend compiles nothing ahead: another GPU is another promise, not an impossibility.
        differs("sm", sm, have, rebuild, fatal=engine.kind == "tensorrt")
    elif len(fitting) < (_whole(target, "count") or 1):
        differs(
            "count",
            target["count"],
            len(fitting),
            "serve it on a machine with as many GPUs, or build it with fewer ranks",
        )
    elif target.get("gpu") is not None and all(g.name != target["gpu"] for g in fitting):
        differs(
            "gpu",
            target["gpu"],
            fitting[0].name,
            "it runs, but its tactics were timed on another GPU: build it here",
            False,
        )
    floor = _text(wanted, "driverFloor")
    if floor is not None and not version_at_least(machine.driver, floor):
        older = version_at_least(machine.driver, _text(wanted, "driver") or floor)
        differs("driver", f"{floor} or later", machine.driver, "update the driver", fatal=not older)
    memory = _whole(target, "memory")
    if memory is not None and fitting and max(g.total for g in fitting) < memory * 0.95:
        differs(
            "memory",
            memory,
            max(g.total for g in fitting),
            "the KV cache is smaller here: compare enginix plan",
            False,
        )
    return Verdict(engine, tuple(found))


def _whole(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ManifestError(f"target.{name} is {value!r}", fix="build this engine again")


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ManifestError(f"runtime.{name} is {value!r}", fix="build this engine again")


def require(directory: Path, machine: Machine | None, runtime: str | None = None) -> Verdict:
    """The verdict, when the engine runs here.

    Raises:
        ManifestError: not an engine.
        Mismatch: it does not run here; every differing field with what to do.
    """
    verdict = compare(manifest.read(directory, "engine"), machine, runtime)
    if not verdict.runs:
        worst = [d for d in verdict.differences if d.fatal]
        raise Mismatch(
            "; ".join(f"{d.field}: built for {d.built}, here {d.live}" for d in worst),
            where=str(directory),
            fix="; ".join(d.do for d in worst),
        )
    return verdict
