"""Checks of a checkpoint directory: what TensorRT-LLM requires is there, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from enginix.checkpoint.config import DTYPES, CheckpointConfig
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.formats.base import Spec
from enginix.checkpoint.layout import Layout, Linear, Vector
from enginix.checkpoint.write import file_name
from enginix.errors import EnginixError
from enginix.model import read_header


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    where: str
    what: str


def required(layout: Layout, rank: int) -> Spec:
    """Every tensor that the loader requires of one rank: name → dtype, shape."""
    config, found = layout.config, Spec()
    for module in layout.rank(rank):
        if isinstance(module, Vector):
            found[f"{module.name}.weight"] = (DTYPES[config.dtype], (module.size,))
        elif isinstance(module, Linear):
            algorithm = config.quantization.algorithm(module.name) if module.quantizable else None
            spec = format_of(algorithm).spec(module, config)
            found.update({f"{module.name}.{leaf}": value for leaf, value in spec.items()})
            if module.bias:
                found[f"{module.name}.bias"] = (DTYPES[config.dtype], (module.out,))
    return found


def verify(directory: Path) -> list[Finding]:
    """Everything that is wrong with a checkpoint; empty where nothing is."""
    config = CheckpointConfig.read(directory)
    layout, findings = Layout(config), []
    for rank in config.mapping.ranks():
        path = directory / file_name(rank)
        try:
            tensors = read_header(path).tensors
        except EnginixError as e:
            findings.append(Finding(e.where or str(path), e.what))
            continue
        expected = required(layout, rank)
        for name, (dtype, shape) in expected.items():
            found = tensors.get(name)
            if found is None:
                findings.append(Finding(f"{path.name}: {name}", "missing"))
            elif (found.dtype, found.shape) != (dtype, shape):
                findings.append(
                    Finding(
                        f"{path.name}: {name}",
                        f"{found.dtype} {list(found.shape)} instead of {dtype} {list(shape)}",
                    )
                )
        findings.extend(
            Finding(f"{path.name}: {name}", "not required") for name in sorted(set(tensors) - set(expected))
        )
    return findings
