"""Execute an engine by NVIDIA's runtime, TensorRT for RTX, on a GPU.

NEVER EXECUTED: no machine of this project has a GPU that the library takes. It is written by NVIDIA's
documentation of 1.7. Tests hold each call against the signatures of NVIDIA's own bindings, and run the whole
over a stand-in of them (tests/standin/tensorrt_rtx.py).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from enginix import __version__
from enginix.errors import MachineError
from enginix.files import sha256_file
from enginix.kinds.rtx.engine_description import EngineShape, read_engine_description
from enginix.kinds.rtx.plan_builder import LibraryLog, import_tensorrt_rtx, make_logger
from enginix.kinds.rtx.step_inputs import StepInputs
from enginix.manifest import MANIFEST_FILE

_SHOWN = 3  # messages of an error
# Libraries and drivers whose kernels a cache holds are checked by NVIDIA's library, which refuses others.
CACHE_SUFFIX = ".rtxcache"


class CudaMemory:
    """Buffers and a stream of the first GPU, by PyTorch: the library's bindings allocate nothing.

    Raises:
        MachineError: this PyTorch has no CUDA, or there is no GPU.
    """

    def __init__(self) -> None:
        if torch.version.cuda is None:
            raise MachineError(
                f"PyTorch {torch.__version__} has no CUDA, and buffers on the GPU are PyTorch's",
                fix="install PyTorch with CUDA (docs/how-to/environments.md)",
            )
        if not torch.cuda.is_available():
            raise MachineError("PyTorch finds no GPU", fix="check nvidia-smi, the driver, and --gpus")
        self.device = torch.device("cuda", 0)
        with torch.cuda.device(self.device):
            # Not the default stream: the library would wait for the whole GPU at each step.
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def stream_handle(self) -> int:
        return int(self._stream.cuda_stream)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return zeros: the columns that a mask excludes must be finite."""
        with self.active():
            return torch.zeros(shape, dtype=dtype, device=self.device)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the GPU and the stream current in this thread, and wait for the stream at the end."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": properties.name,
            "sm": properties.major * 10 + properties.minor,
            "memory": properties.total_memory,
            "torch": torch.__version__,
            "torchCuda": torch.version.cuda,
        }


class RuntimeBackend:
    """See :class:`.step_backend.StepBackend`.

    The KV cache's inputs and outputs are bound to one address each, where the library updates them in place.
    Its kernels are compiled at the first steps; what was compiled is kept in a file, the runtime cache.
    """

    def __init__(
        self, engine: Path, cache_directory: Path | None = None, *, memory: CudaMemory | None = None
    ) -> None:
        """Load an engine.

        Args:
            cache_directory: where compiled kernels are kept; None keeps none.
            memory: buffers in place of :class:`CudaMemory`, for tests.

        Raises:
            ManifestError: the engine's description is damaged.
            MachineError: no GPU, no CUDA in PyTorch, another version of the library, a GPU that the plan is
                not for, or the library refuses the plan; with its reasons.
        """
        self._description = description = read_engine_description(engine)
        self.shape: EngineShape = description
        self.vocab_size = description.vocab_size
        trt = import_tensorrt_rtx()
        self._trt, self._log = trt, LibraryLog()
        # First: the library takes the CUDA context that PyTorch makes current.
        self._memory = CudaMemory() if memory is None else memory
        self._inputs, self._caches, self._logits = self._allocate_buffers()
        self._require_target(self._memory.describe())
        self._cache_file = None
        if cache_directory is not None:
            digest = sha256_file(engine / MANIFEST_FILE)[:16]
            self._cache_file = cache_directory / f"{digest}-{description.version}{CACHE_SUFFIX}"
        # The library refers to its logger and runtime as long as the engine lives.
        self._logger = make_logger(trt, self._log)
        self._runtime = trt.Runtime(self._logger)
        with self._memory.active():
            self._engine = self._load_plan()
            self._check_bindings()
            self._context, self._cache = self._create_context()
            for name, buffer in self._list_buffers().items():
                if not self._context.set_tensor_address(name, buffer.data_ptr()):
                    raise self._explain_failure(f"TensorRT for RTX refuses the address of {name}")
        self._saved_bytes = -1

    def _allocate_buffers(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        d = self._description
        dtype = getattr(torch, d.dtype)
        shapes: dict[str, tuple[int, ...]] = {
            "input_ids": (d.slots, d.step_tokens),
            "write_indices": (d.slots,),
            "last_indices": (d.slots, 1),
        }
        try:
            inputs = {name: self._memory.allocate(shape, torch.int32) for name, shape in shapes.items()}
            caches = {name: self._memory.allocate(d.cache_shape, dtype) for name in d.caches}
            return inputs, caches, self._memory.allocate((d.slots, d.vocab_size), torch.float32)
        except torch.OutOfMemoryError as e:
            raise MachineError(
                f"out of memory while allocating the KV cache: {e}",
                where=d.plan,
                fix="end what uses the GPU, or build the engine with lower --max-seq-len or --max-batch-size",
            ) from e

    def _require_target(self, gpu: dict[str, Any]) -> None:
        """Refuse a GPU that the plan is not for; the library would say less."""
        if gpu["sm"] not in self._description.targets:
            targets = ", ".join(map(str, self._description.targets))
            raise MachineError(
                f"the engine is for SM {targets}, and {gpu['gpu']} has SM {gpu['sm']}",
                where=self._description.plan,
                fix="serve it on such a GPU; enginix check ENGINE tells whether one can be built for this "
                "GPU",
            )

    def _explain_failure(self, what: str, fix: str = "report it with this message") -> MachineError:
        """Return the error of what failed, with the runtime's last messages."""
        reasons = "; ".join(self._log.errors[-_SHOWN:]) or "TensorRT for RTX says nothing of it"
        return MachineError(f"{what}: {reasons}", where=self._description.plan, fix=fix)

    def _load_plan(self) -> Any:
        path = self._description.plan
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._explain_failure(
                "TensorRT for RTX does not load the plan",
                "enginix check ENGINE compares GPU, driver and files; else report it with this message",
            )
        return engine

    def _check_bindings(self) -> None:
        """Compare the plan's tensors with the engine's description: another size would be written over."""
        trt, engine, d = self._trt, self._engine, self._description
        types = {torch.int32: trt.int32, torch.float32: trt.float32, torch.float16: trt.float16}
        types[torch.bfloat16] = trt.bfloat16
        buffers = self._list_buffers()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        differences = [f"tensor {name} is not known" for name in names if name not in buffers]
        differences += [f"tensor {name} is missing" for name in buffers if name not in names]
        for name, buffer in ((name, buffers[name]) for name in names if name in buffers):
            shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            if shape != tuple(buffer.shape) or dtype != types[buffer.dtype]:
                differences.append(f"tensor {name} is {dtype} {list(shape)}")
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                differences.append(f"tensor {name} is not on the GPU")
        for name in d.caches:
            alias = engine.get_aliased_input_tensor(f"{name}_next") if f"{name}_next" in names else name
            if alias not in (None, "", name):
                differences.append(f"tensor {name}_next is in the place of {alias}")
        if differences:
            raise MachineError(
                "the plan's tensors are not those of engine.json: " + "; ".join(differences[:_SHOWN]),
                where=d.plan,
                fix="build the engine again",
            )

    def _list_buffers(self) -> dict[str, torch.Tensor]:
        """Return each tensor of the plan and its buffer."""
        updated = {f"{name}_next": cache for name, cache in self._caches.items()}
        return {**self._inputs, **self._caches, **updated, "logits": self._logits}

    def _create_context(self) -> tuple[Any, Any]:
        """Return an execution context and its runtime cache, with what an earlier run has compiled."""
        config = self._engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.is_file():
            # Of another GPU, driver or library it is refused, and all is compiled again.
            cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(cache)
        context = self._engine.create_execution_context(runtime_config=config)
        if context is None:
            raise self._explain_failure(
                "TensorRT for RTX makes no execution context",
                "end what uses the GPU's memory, or report it with this message",
            )
        return context, cache

    def run_step(self, inputs: StepInputs) -> torch.Tensor:
        with self._memory.active():
            for name, tensor in inputs.items():
                self._inputs[name].copy_(tensor)
            if not self._context.execute_async_v3(self._memory.stream_handle):
                raise self._explain_failure("TensorRT for RTX did not execute a step")
        if self._saved_bytes < 0:
            self._save_runtime_cache()
        return self._logits

    def _save_runtime_cache(self) -> None:
        """Keep what was compiled; a directory that cannot be written costs the next start time alone."""
        if self._cache_file is None:
            self._saved_bytes = 0
            return
        with self._memory.active():
            blob = bytes(self._cache.serialize())
        if len(blob) == self._saved_bytes:
            return
        self._saved_bytes = len(blob)
        with contextlib.suppress(OSError):
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._cache_file.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
            os.replace(name, self._cache_file)

    def describe(self) -> dict[str, Any]:
        return {
            "executor": "NVIDIA's runtime, TensorRT for RTX",
            "enginix": __version__,
            "tensorrtRtx": self._trt.__version__,
            **self._memory.describe(),
        }

    def close(self) -> None:
        if self._context is None:
            return
        if self._saved_bytes >= 0:
            self._save_runtime_cache()
        # In this order: each refers to the next one.
        self._context = self._cache = self._engine = self._runtime = None
        self._inputs, self._caches = {}, {}
