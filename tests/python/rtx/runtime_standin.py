"""A stand-in for the runtime half of NVIDIA's bindings: the plan's network, walked by the interpreter at the
addresses that are bound.

Each class answers under the name of one of NVIDIA's. A call that NVIDIA's class does not have, or with other
arguments than its signature says, is an error here.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch

from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter


class SignatureError(Exception):
    """NVIDIA's class has no such method, or it takes other arguments."""


def read_signatures(function: Any) -> list[inspect.Signature]:
    """Return the signatures that pybind11 wrote into a docstring, one an overload."""
    name, signatures = function.__name__, []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(rf"(?:\d+\. )?{name}\((self: .*)\) -> ", line)
        if match is None:
            continue
        parameters = []
        for part in re.split(r", (?=\w+: )", match[1])[1:]:
            key, default = part.split(":")[0], "=" in part
            parameters.append(
                inspect.Parameter(
                    key,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=None if default else inspect.Parameter.empty,
                )
            )
        signatures.append(inspect.Signature(parameters))
    return signatures


def check_call(real: type, name: str, *arguments: Any, **named: Any) -> None:
    """Compare a call with the signatures of NVIDIA's class."""
    function = getattr(real, name, None)
    signatures = [] if function is None else read_signatures(function)
    for signature in signatures:
        with contextlib.suppress(TypeError):
            signature.bind(*arguments, **named)
            return
    raise SignatureError(f"{real.__name__}.{name} of {arguments} {named}; NVIDIA's: {signatures}")


class StandIn:
    """An object that stands for one of NVIDIA's class ``real``."""

    real: type

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        real = object.__getattribute__(self, "real")
        if name.startswith("_") or name == "real":
            return value
        if not callable(value):
            if not isinstance(getattr(real, name, None), property):
                raise SignatureError(f"{real.__name__} has no property {name}")
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            check_call(real, name, *arguments, **named)
            return value(*arguments, **named)

        return call


class RuntimeStandIn:
    """The module of bindings, with a runtime in place of NVIDIA's.

    Attributes:
        behaviour: what it does: ``refuses_plan``, ``refuses_address``, ``fails``, ``refuses_cache``.
        calls: names of the calls, in order.
    """

    def __init__(self, trt: Any, network: DecoderNetwork, *behaviour: str) -> None:
        self._trt, self.calls, self.behaviour = trt, list[str](), behaviour
        self.cache_loaded: bytes | None = None
        outer = self
        interpreter = NetworkInterpreter(network.writer)
        described = network.writer.network
        tensors = {
            tensor.name: tensor
            for get, count in (
                (described.get_input, described.num_inputs),
                (described.get_output, described.num_outputs),
            )
            for tensor in (get(index) for index in range(count))
        }
        types = {
            trt.int32: torch.int32,
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
        }

        class Cache(StandIn):
            real = trt.IRuntimeCache

            def deserialize(self, blob: bytes) -> bool:
                outer.calls.append("cache.deserialize")
                if "refuses_cache" not in outer.behaviour:
                    outer.cache_loaded = bytes(blob)
                return "refuses_cache" not in outer.behaviour

            def serialize(self) -> memoryview:
                outer.calls.append("cache.serialize")
                return memoryview(b"compiled kernels")

        class Config(StandIn):
            real = trt.IRuntimeConfig

            def create_runtime_cache(self) -> Cache:
                return Cache()

            def set_runtime_cache(self, cache: Cache) -> bool:
                outer.calls.append("config.set_runtime_cache")
                return isinstance(cache, Cache)

        class Context(StandIn):
            real = trt.IExecutionContext

            def __init__(self) -> None:
                self._addresses: dict[str, int] = {}

            def set_tensor_address(self, name: str, memory: int) -> bool:
                self._addresses[name] = memory
                return name in tensors and "refuses_address" not in outer.behaviour

            def execute_async_v3(self, stream_handle: int) -> bool:
                if "fails" in outer.behaviour:
                    outer.logger.log(trt.ILogger.Severity.ERROR, "a kernel was lost\n")
                    return False
                for index in range(described.num_inputs):
                    name = described.get_input(index).name
                    if f"{name}_next" in tensors:
                        assert self._addresses[name] == self._addresses[f"{name}_next"], name
                inputs = {
                    name: self._read(name, self._addresses[name])
                    for name in self._addresses
                    if name != "logits" and not name.endswith("_next")
                }
                # Caches are updated in place, at their address.
                outputs = interpreter.run(inputs)
                self._read("logits", self._addresses["logits"]).copy_(outputs["logits"])
                return True

            def _read(self, name: str, address: int) -> torch.Tensor:
                shape, dtype = tuple(tensors[name].shape), types[tensors[name].dtype]
                size = torch.Size(shape).numel() * dtype.itemsize
                return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)

        class Engine(StandIn):
            real = trt.ICudaEngine
            num_io_tensors = len(tensors)

            def get_tensor_name(self, index: int) -> str:
                return list(tensors)[index]

            def get_tensor_shape(self, name: str) -> Any:
                return tensors[name].shape

            def get_tensor_dtype(self, name: str) -> Any:
                return tensors[name].dtype

            def get_tensor_location(self, name: str) -> Any:
                return trt.TensorLocation.DEVICE

            def get_aliased_input_tensor(self, name: str) -> str | None:
                return name.removesuffix("_next") if name.endswith("_next") else None

            def create_runtime_config(self) -> Config:
                return Config()

            def create_execution_context(self, runtime_config: Config) -> Context:
                outer.calls.append("engine.create_execution_context")
                return Context()

        class Runtime(StandIn):
            real = trt.Runtime

            def __init__(self, logger: Any) -> None:
                check_call(trt.Runtime, "__init__", logger)
                outer.logger = logger

            def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
                assert bytes(memoryview(serialized_engine)[:4]) == b"vtrt"
                if "refuses_plan" in outer.behaviour:
                    outer.logger.log(trt.ILogger.Severity.ERROR, "cudaError 35\n")
                    return None
                return Engine()

        self.Runtime = Runtime
        self.logger: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)


class HostMemory:
    """Buffers on the host in place of a GPU's."""

    stream_handle = 0

    def __init__(self, sm: int = 89) -> None:
        self.sm = sm

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def describe(self) -> dict[str, Any]:
        return {"gpu": "no GPU, a stand-in", "sm": self.sm, "memory": 0, "torch": torch.__version__}
