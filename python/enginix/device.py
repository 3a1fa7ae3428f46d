"""Where torch computes: a device by its name, or what is wrong with that name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginix.errors import MachineError

if TYPE_CHECKING:
    import torch

FIX = "use --device cpu, or a machine with a GPU"


def find(name: str, fix: str = FIX) -> torch.device:
    """The device ``name``: ``cpu``, ``cuda`` or ``cuda:N``.

    Asked before anything is loaded: torch itself says it only when the first tensor moves, and whoever loads
    a model would take that for a fault of the model's.

    Raises:
        MachineError: no such device, or not on this machine.
    """
    import torch

    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise MachineError("no such device", where=name, fix="one of: cpu, cuda, cuda:N")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise MachineError("no CUDA device", where=name, fix=fix)
        if (found.index or 0) >= torch.cuda.device_count():
            there = torch.cuda.device_count() - 1
            raise MachineError(
                "no such CUDA device", where=name, fix=f"the last one here is cuda:{there}, or {fix}"
            )
    return found
