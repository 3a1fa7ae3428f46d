"""The graph that NVIDIA's direct builder makes of a model, recorded without TensorRT and without a GPU.

python -m enginix.kinds.edgellm.execution.direct_graph MODEL OUT

The wheel's own builder (``experimental.builder``) runs over a module that records its calls
(:mod:`builder_module`). OUT becomes the engine directory that it writes, its ``llm.engine`` the graph in
ONNX. What the builder leaves to the runtime as an input, for instance a weight in 16 bits, is listed in its
``config.json`` and read from the model as it says there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import enginix
from enginix import process
from enginix.errors import GateError, MachineError, ModelError
from enginix.kinds.edgellm import checks, graph_contract
from enginix.kinds.edgellm.errors import ExportError, refuse_differences
from enginix.kinds.edgellm.execution import export_gate
from enginix.kinds.edgellm.expected_tensors import TABLE
from enginix.kinds.edgellm.graph import Constant, Graph, read_graph
from enginix.kinds.edgellm.runtime_config import compare_engine_config
from enginix.kinds.edgellm.source import ExportSource
from enginix.kinds.edgellm.unsupported_models import require_direct_reading
from enginix.kinds.edgellm.values import FLOAT_DTYPES, Expected
from enginix.model import ModelWeights, TensorInfo
from enginix.model.jsonfile import read_object
from enginix.tables import load_table

RECORDER_MODULE = "enginix.kinds.edgellm.execution.direct_graph"
ENGINE_FILE = "llm.engine"
TABLE_BINDING = "__embedding__"
# A GPU of SM 120: for dense models on one GPU the builder defines the same network for all of them.
_COMPUTE_CAPABILITY = (12, 0)
_BINDINGS = "checkpoint_weight_bindings"


@dataclass(frozen=True)
class BoundConstant(Constant):
    """An input of the engine that the runtime reads from the model, cast to float16.

    Attributes:
        tensor: what it is read from.
    """

    tensor: TensorInfo | None = None

    def array(self) -> np.ndarray[Any, Any]:
        assert self.tensor is not None
        rows = Expected(self.tensor, "FLOAT16")
        return rows.rows(0, rows.shape[0]).view(np.float16).reshape(self.shape)


def read_direct_graph(engine: Path, weights: ModelWeights) -> Graph:
    """Read a recorded engine: its graph, with the inputs that the runtime fills as constants.

    Raises:
        GateError: an input is bound to no tensor of the model, or in a way that is not known.
        ExportError: the graph is damaged.
    """
    graph = read_graph(engine / ENGINE_FILE)
    bindings = {row["engine_name"]: row for row in read_object(engine / "config.json").get(_BINDINGS) or ()}
    constants = dict(graph.constants)
    for name, binding in bindings.items():
        if name == TABLE_BINDING or name in graph.constants:
            continue
        constants[name] = _bind_tensor(name, binding, weights)
    free = tuple(name for name in graph.inputs if name not in constants)
    return replace(graph, constants=constants, inputs=free)


def _bind_tensor(name: str, binding: Mapping[str, Any], weights: ModelWeights) -> Constant:
    keys, shape = binding.get("checkpoint_keys") or [], tuple(binding.get("shape") or ())
    tensor = weights.tensors.get(keys[0]) if len(keys) == 1 else None
    if tensor is None or binding.get("source_layout") not in ("fp16", "plugin") or binding.get("assemble"):
        raise GateError(f"the direct builder's input {name} is bound in a way that the gate does not know")
    if tensor.dtype not in FLOAT_DTYPES or int(np.prod(tensor.shape)) != int(np.prod(shape)):
        raise GateError(f"the direct builder's input {name} is {list(shape)}, {tensor.name} of the model not")
    return BoundConstant(name, "FLOAT16", shape, np.zeros(0, np.uint8), tensor)


def check_direct_engine(engine: Path, source: ExportSource) -> Graph:
    """Compare a recorded engine with the model: its configuration, embedding table and attention.

    Returns:
        The graph, to execute.

    Raises:
        GateError: an input or the table is bound to something else than the model's.
        ExportError: the configuration or the attention is another model's, or the graph is damaged.
    """
    config = checks.read_runtime_config(engine)
    compare_engine_config(config, source, "direct", str(engine / "config.json"))
    table = [row for row in config.get(_BINDINGS) or () if row.get("engine_name") == TABLE_BINDING]
    if len(table) != 1 or table[0].get("checkpoint_keys") != [TABLE] or table[0].get("embedding_scale") != 1:
        raise GateError("the direct builder binds the embedding table in a way that the gate does not know")
    graph = read_direct_graph(engine, source.weights)
    for differences in (
        checks.find_attention_differences(graph, source),
        graph_contract.find_other_readers(graph),
        graph_contract.find_norm_differences(graph, source),
    ):
        refuse_differences(differences, graph.path)
    return graph


@contextlib.contextmanager
def start_recording(model: Path, out: Path, environment: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Start to record what the direct builder makes of a model, in a process of its own.

    Args:
        out: a directory to create, on a disk with room for the model's quantized weights.

    Yields:
        A function that waits for the end; it raises GateError if the builder failed or did something that
        is not recorded.
    """
    settings = {**environment, "PYTHONPATH": str(Path(enginix.__file__).parents[1])}
    command: list[str | Path] = [sys.executable, "-m", RECORDER_MODULE, os.path.abspath(model), out]
    with process.start_program(command, env=settings, cwd=out.parent) as wait:

        def finish() -> None:
            done = wait()
            if done.returncode < 0 or "No space left on device" in done.stderr:
                raise MachineError(
                    "disk or memory were short while the direct builder's graph was recorded",
                    where=model,
                    fix="free about the weights' size of both",
                )
            if done.returncode != 0 or not (out / ENGINE_FILE).is_file():
                last = process.read_last_line(done.stderr, f"status {done.returncode}").strip()[:300]
                for path in (out, model.absolute()):
                    last = last.replace(str(path), path.name)
                raise GateError(f"NVIDIA's direct builder makes no graph of this model: {last}")

        yield finish


def judge_direct_builder(
    engine: Path, finish: Callable[[], None], source: ExportSource, answers: export_gate.ModelAnswers
) -> dict[str, Any]:
    """Hold the direct builder's graph to the model.

    An export serves the other builder too, so a refusal is evidence, and not an error.

    Args:
        engine, finish: of :func:`start_recording`.

    Returns:
        The gate's evidence; or the graph and why it is refused.

    Raises:
        MachineError: disk or memory were short.
    """
    try:
        require_direct_reading(source.model)
        finish()
        graph = check_direct_engine(engine, source)
        return export_gate.judge_direct(engine, graph, source, answers)
    except (GateError, ExportError, ModelError) as e:
        return {"graph": "direct", "refused": e.what}


def install_recorder(out: Path) -> None:
    """Have the wheel's builder import the recorder as ``tensorrt``, and write its engines to ``out``."""
    from enginix.kinds.edgellm.execution import builder_module

    version = load_table("edgellm")["payloads"][0]["tensorrt"]
    sys.modules["tensorrt"] = builder_module.make_module(version, out / f"{ENGINE_FILE}.data")
    from experimental.builder.core import builder
    from experimental.builder.ops import backend

    builder._active_cuda_compute_capability = lambda: _COMPUTE_CAPABILITY
    _bake_int4_inputs(backend)
    _forget_arrays(backend)


class _ForgettingList(list[Any]):
    """Keeps nothing: TensorRT needs the builder's arrays until the end, and the recorder copies each."""

    def append(self, _value: Any) -> None:
        pass


def _forget_arrays(backend: Any) -> None:
    begin = backend.Net.__init__

    def __init__(net: Any, *arguments: Any, **options: Any) -> None:
        begin(net, *arguments, **options)
        net._weight_refs = _ForgettingList()

    backend.Net.__init__ = __init__


def _bake_int4_inputs(backend: Any) -> None:
    """Have INT4 codes and scales as constants: the runtime's own way of assembling them is compiled code."""
    declare = backend.Net.parameter

    def parameter(net: Any, name: str, value: Any, kind: str, recipe: Any = None) -> Any:
        from experimental.builder.ops.scope import current_context

        if kind != "int4_ffn":
            return declare(net, name, value, kind, recipe)
        prefix, _, leaf = name.rpartition(".")
        weights = current_context().weights
        linear = weights.linear(prefix, weights.module_quant_type(prefix))  # repacked for the plugin
        codes, scales = linear.weight.astype(np.int8, copy=False), linear.weight_scale
        array = codes if leaf == "qweight" else np.asarray(scales, np.float16)
        if tuple(array.shape) != tuple(value.shape):
            raise GateError(f"{name} is {list(array.shape)}, and the builder declares {list(value.shape)}")
        return net.const(array, leaf)

    backend.Net.parameter = parameter


def record_direct_graph(model: Path, out: Path) -> None:
    """Run the wheel's builder over the recorder; its engine directory becomes ``out``."""
    out.mkdir(parents=True)
    install_recorder(out)
    from experimental.builder import cli

    arguments = cli._parser().parse_args(["--model-dir", str(model), "--engine-dir", str(out)])
    bundle, components = cli._resolve_build_selection(arguments)
    if len(components) != 1:
        raise GateError(f"the builder would build {len(components)} components")
    # The last argument stands for the plugin library, which no CPU loads.
    cli._build_one(arguments, bundle, components[0], object())


def main() -> int:
    try:
        record_direct_graph(Path(sys.argv[1]), Path(sys.argv[2]))
    except GateError as e:
        sys.stderr.write(f"{e.what}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
