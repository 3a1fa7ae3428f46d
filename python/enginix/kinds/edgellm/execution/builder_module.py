"""The module that NVIDIA's direct builder imports as ``tensorrt``; its engines are recorded networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from enginix.kinds.edgellm.execution.network_recorder import Network
from enginix.kinds.edgellm.execution.recorded_layers import DataType, ITensor, Weights


class _Builder:
    """Gives out networks; "building" an engine writes the network."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def create_network(self, _flags: int) -> Network:
        return Network(self.data)

    def create_builder_config(self) -> Any:
        ignore = lambda *_: None  # noqa: E731
        return SimpleNamespace(
            set_preview_feature=ignore, add_optimization_profile=ignore, set_memory_pool_limit=ignore
        )

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *_: None)

    def build_serialized_network(self, network: Network, _config: Any) -> memoryview:
        return memoryview(network.serialize())


class _Registry:
    """Gives a creator for every plugin; which of them have a definition is the gate's to say."""

    def get_creator(self, name: str, _version: str, _namespace: str) -> Any:
        def create_plugin(_instance: str, fields: Sequence[Any], _phase: Any) -> Any:
            attributes = {}
            for field in fields:
                values = field.data.tolist()
                attributes[field.name] = values if field.name == "qkv_scales" else values[0]
            return SimpleNamespace(name=name, attributes=attributes)

        return SimpleNamespace(create_plugin=create_plugin, field_names=())


class _Names:
    """An enumeration whose members are their names."""

    def __getattr__(self, name: str) -> str:
        return name


def make_module(version: str, data: Path) -> ModuleType:
    """Return what the builder imports as ``tensorrt``.

    Args:
        version: TensorRT's, by which the builder chooses compiler flags.
        data: file for constants, in the directory of the engine.
    """
    module = ModuleType("tensorrt")
    logger = type("ILogger", (), {"Severity": _Names(), "__init__": lambda self: None})
    members: dict[str, Any] = {
        "__version__": version, "DataType": DataType, "Weights": Weights, "ITensor": ITensor,
        "INetworkDefinition": Network, "Builder": lambda _logger: _Builder(data), "ILogger": logger,
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "PluginField": lambda name, data, _kind: SimpleNamespace(name=name, data=data),
        "PluginFieldCollection": list, "get_plugin_registry": _Registry,
        "float16": DataType.HALF, "float32": DataType.FLOAT, "int8": DataType.INT8,
        "int32": DataType.INT32, "int64": DataType.INT64, "uint8": DataType.UINT8,
        "bool": DataType.BOOL, "bfloat16": DataType.BF16, "fp8": DataType.FP8, "fp4": DataType.FP4,
    }  # fmt: skip
    for name in (
        "ElementWiseOperation", "UnaryOperation", "ActivationType", "ReduceOperation", "MatrixOperation",
        "GatherMode", "TopKOperation", "KVCacheMode", "CausalMaskKind", "AttentionNormalizationOp",
        "PluginFieldType", "TensorRTPhase", "PreviewFeature", "ProfilingVerbosity", "MemoryPoolType",
        "ScatterMode", "LoopOutput", "TripLimit", "SampleMode", "InterpolationMode", "FillOperation",
        "CumulativeOperation", "BuilderFlag", "PaddingMode",
    ):  # fmt: skip
        members[name] = _Names()
    module.__dict__.update(members)
    return module
