"""The device that torch computes on, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginix.errors import MachineError, UsageError

if TYPE_CHECKING:
    import torch

DEVICE_FIX = "use --device cpu, or a machine with a GPU"
# Below this number of parameters a matrix product ends before a second thread is awake; on shared cores
# waiting for that thread costs ten times the product.
ONE_THREAD_PARAMETERS = 20_000_000


def find_device(name: str, fix: str = DEVICE_FIX) -> torch.device:
    """Return the device ``name``: ``cpu``, ``cuda`` or ``cuda:N``.

    Call it before anything is loaded: torch reports a missing device only when the first tensor moves, where
    the error looks like a fault of the model.

    Raises:
        UsageError: no such device.
        MachineError: it is not on this machine.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError("no such device", where=name, fix="one of: cpu, cuda, cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MachineError("no CUDA device", where=name, fix=fix)
        if (device.index or 0) >= torch.cuda.device_count():
            last_index = torch.cuda.device_count() - 1
            raise MachineError(
                "no such CUDA device", where=name, fix=f"the last one here is cuda:{last_index}, or {fix}"
            )
    return device


def limit_threads(parameters: int, device: torch.device) -> None:
    """Set torch to one thread, for the whole process, where a model on the CPU is too small for more."""
    import torch

    if device.type == "cpu" and parameters < ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
