"""The code around NVIDIA's runtime, which no machine here executes.

Its calls are held against the signatures of NVIDIA's bindings, and made to a stand-in of them that walks the
network at the addresses that were bound.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_standin import HostMemory, RuntimeStandIn, SignatureError, check_call, read_signatures

from enginix.errors import EnginixError, MachineError, ManifestError
from enginix.kinds.rtx.engine_description import read_engine_description
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter
from enginix.kinds.rtx.network_gate import NetworkCase, walk_network
from enginix.kinds.rtx_serving import runtime_backend
from enginix.kinds.rtx_serving.runtime_backend import CudaMemory, RuntimeBackend
from enginix.kinds.rtx_serving.slot_sequences import SlotSequences

Load = Callable[..., tuple[RuntimeBackend, RuntimeStandIn]]


@pytest.fixture
def load(trt: Any, served: Path, tiny: Path, describe: Any, monkeypatch: pytest.MonkeyPatch) -> Load:
    network, _ = describe(tiny, read_engine_description(served))

    def make(*behaviour: str, engine: Path = served, sm: int = 89, **more: Any) -> Any:
        stand_in = RuntimeStandIn(trt, network, *behaviour)
        monkeypatch.setattr(runtime_backend, "import_tensorrt_rtx", lambda: stand_in)
        return RuntimeBackend(engine, memory=HostMemory(sm), **more), stand_in

    return make


def test_the_runtime_s_logits_are_the_network_s(load: Load, describe: Any, tiny: Path, served: Path) -> None:
    backend, _ = load()
    network, _ = describe(tiny, read_engine_description(served))
    tokens = tuple(range(5, 45))
    cases = [NetworkCase(tokens, (7, 23, 38, 39, 40)), NetworkCase(tokens[:9], (6, 7, 8, 9))]
    # As many rows as the engine has slots: products of another shape have other roundings.
    expected = walk_network(NetworkInterpreter(network.writer), network, [*cases, *[cases[1]] * 6])
    sequences, logits = SlotSequences(backend), list[torch.Tensor]()
    start = 0
    for end in cases[0].ends:
        logits.append(sequences.run_step({0: tokens[start:end]}, [0] if start == 0 else [])[0].clone())
        start = end
    torch.testing.assert_close(torch.stack(logits), expected[0], atol=0.05, rtol=0.02)
    assert torch.equal(torch.stack(logits).argmax(-1), expected[0].argmax(-1))


def test_compiled_kernels_are_kept_and_taken_again(load: Load, tmp_path: Path) -> None:
    directory = tmp_path / "state" / "rtx"
    backend, stand_in = load(cache_directory=directory)
    assert "cache.deserialize" not in stand_in.calls
    SlotSequences(backend).run_step({0: [1]})
    (file,) = directory.iterdir()
    assert file.read_bytes() == b"compiled kernels" and "1.7.1.116" in file.name
    SlotSequences(backend).run_step({0: [1]})
    assert stand_in.calls.count("cache.serialize") == 1
    backend.close()
    backend.close()
    _, stand_in = load(cache_directory=directory)
    assert stand_in.cache_loaded == b"compiled kernels"
    # NVIDIA's library refuses the kernels of another GPU; then all are compiled again.
    refused, stand_in = load("refuses_cache", cache_directory=directory)
    SlotSequences(refused).run_step({0: [1]})
    assert stand_in.cache_loaded is None
    # A place that cannot be written costs time alone.
    (tmp_path / "file").write_text("")
    unwritable, _ = load(cache_directory=tmp_path / "file")
    SlotSequences(unwritable).run_step({0: [1]})


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuses_plan", "does not load the plan: cudaError 35"),
        ("refuses_address", "refuses the address of input_ids: TensorRT for RTX says nothing"),
        ("fails", "did not execute a step: a kernel was lost"),
    ],
)
def test_failures_of_the_runtime_have_its_reason(load: Load, behaviour: str, reason: str) -> None:
    with pytest.raises(MachineError, match=reason):
        SlotSequences(load(behaviour)[0]).run_step({0: [1]})


@pytest.mark.parametrize("sm", [75, 90, 100, 103])
def test_another_gpu_is_refused(load: Load, sm: int) -> None:
    with pytest.raises(MachineError, match=f"for SM 80, 86, 89, 120, 121, and .* has SM {sm}"):
        load(sm=sm)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("headSize", 64, "tensor key_0 is"),
        ("layers", 5, "tensor key_4 is missing"),
        ("layers", 3, "tensor key_3 is not known"),
        ("vocabSize", 999, "tensor logits is"),
        ("dtype", "float16", "tensor key_0 is"),
    ],
)
def test_a_plan_of_other_tensors_is_refused(
    load: Load, served: Path, tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    shutil.copytree(served, tmp_path / "engine")
    path = tmp_path / "engine/engine/engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(MachineError, match=reason):
        load(engine=tmp_path / "engine")


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"slots": 0}, {"slots": True}, {"cacheLength": 1}, {"targets": None}, {"layers": "4"}],
)
def test_a_damaged_description_is_refused(served: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "engine").mkdir()
    content = json.loads((served / "engine/engine.json").read_text())
    (tmp_path / "engine/engine.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ManifestError, match="description cannot be read"):
        read_engine_description(tmp_path)


def test_a_pytorch_without_cuda_is_refused() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch has CUDA")
    with pytest.raises(MachineError, match="has no CUDA"):
        CudaMemory()


def test_nvidia_s_own_runtime_says_why_it_does_not_load_here(trt: Any, served: Path) -> None:
    """The real library, up to the point where it needs a driver."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MachineError, match=r"does not load the plan: .*(cuda|CUDA)"):
        RuntimeBackend(served, memory=HostMemory())


def test_the_stand_in_holds_calls_against_nvidia_s_signatures(trt: Any, load: Load) -> None:
    check_call(trt.IExecutionContext, "set_tensor_address", "a", 1)
    check_call(trt.ICudaEngine, "create_execution_context", runtime_config=None)
    assert len(read_signatures(trt.ICudaEngine.create_execution_context)) == 2
    for call in (
        ("set_tensor_address", "a"),
        ("set_tensor_address", "a", 1, 2),
        ("set_tensor_adress", "a", 1),
        ("execute_async_v2", 0),
    ):
        with pytest.raises(SignatureError):
            check_call(trt.IExecutionContext, *call)
    with pytest.raises(SignatureError):
        check_call(trt.ICudaEngine, "create_execution_context", config=None)
    backend, _ = load()
    with pytest.raises(SignatureError):
        _ = backend._engine.create_runtime_config().set_runtime_cache(cache=None, more=1)
    # The values that are passed or compared.
    assert trt.TensorLocation.DEVICE != trt.TensorLocation.HOST
    assert isinstance(EnginixError("x"), Exception)


def test_the_library_s_buffers_are_bytes(trt: Any) -> None:
    """IHostMemory, which a runtime cache is serialized to, is read by ``bytes``."""
    builder = trt.Builder(trt.Logger())
    network = builder.create_network(0)
    x = network.add_input("x", trt.float32, (2, 2))
    layer = network.add_unary(x, trt.UnaryOperation.NEG)
    network.mark_output(layer.get_output(0))
    memory = builder.build_serialized_network(network, builder.create_builder_config())
    assert isinstance(memory, trt.IHostMemory)
    assert bytes(memory)[:4] == b"vtrt"
    documented = trt.IRuntimeCache.serialize.__doc__
    assert "IHostMemory" in documented
