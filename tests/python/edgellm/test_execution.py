"""The gate ``export``: its parts compute what others compute, and it fails on what is not the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from enginix.errors import GateError
from enginix.kinds.edgellm import graph_contract
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.execution import export_gate, model_logits, plugin_nodes
from enginix.kinds.edgellm.execution.graph_runner import check_nodes
from enginix.kinds.edgellm.execution.rope_table import make_rope_table, read_exported_rope
from enginix.kinds.edgellm.graph import Constant, Graph, Node
from enginix.kinds.edgellm.source import read_export_source
from enginix.tables import load_table

from .conftest import FORMATS, HERE, TINY, Run, environment
from .damage_table import PAGE, make_rows, read_rows
from .other_functions import write_model

QUESTIONS = export_gate.choose_questions(2048, [], 2048)


def from_hugging_face(model: Path) -> list[np.ndarray]:
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return [network(torch.tensor([s])).logits[0].numpy() for s in QUESTIONS.sequences]


def test_the_models_logits_are_those_of_transformers() -> None:
    """One weight at a time, three sequences in a batch: the same as the whole model on each alone."""
    computed = model_logits.compute_model_logits(TINY, [list(s) for s in QUESTIONS.sequences])
    for mode in computed[:2]:
        for expected, row in zip(from_hugging_face(TINY), mode, strict=True):
            assert export_gate.relative_errors(row[: len(expected)], expected).max() < 2e-6
    # float16 is seen in the third alone.
    half = export_gate.relative_errors(computed[2, -1], computed[0, -1]).max()
    assert 1e-5 < half < 1e-2


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_the_rotation_table_is_that_of_transformers(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=128, rope_parameters=rope
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(100)[None])
    exported = {"rope_scaling": rope, "rope_theta": 1e4, "max_position_embeddings": 128, "head_dim": 64}
    table = make_rope_table(read_exported_rope(exported, "LlamaForCausalLM", "x"), 64, np.arange(100))
    expected = torch.cat([cos[0, :, :32], sin[0, :, :32]], 1).numpy()
    assert np.abs(table - expected).max() < 2e-5


def attention(parts: list[np.ndarray], table: np.ndarray, cache: np.ndarray, past: list[int]) -> Any:
    attributes = {
        "num_q_heads": 4, "num_kv_heads": 2, "head_size": 16, "enable_qk_norm": 0, "rms_norm_eps": 1e-6,
        "enable_fp8_kv_cache": 0, "qkv_scales": [1.0, 1.0, 1.0], "attention_scale": 0.25,
        "sliding_window_size": -1,
    }  # fmt: skip
    lengths = np.array([len(p) for p in parts], np.int32)
    rope = np.concatenate([np.ones((lengths.sum(), 8)), np.zeros((lengths.sum(), 8))], 1).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    before = np.array(past, np.int32)
    inputs = (np.concatenate(parts), cache, lengths, rope, before, table, starts, before + lengths)
    definition = plugin_nodes.PLUGIN_NODES["trt_edgellm", "AttentionPlugin"]
    return definition.compute(attributes, (*inputs, lengths, lengths), True)


def test_attention_is_torchs_and_a_paged_cache_changes_nothing() -> None:
    """Two sequences in scattered pages, the second in two pages, and a step after each."""
    draw = np.random.default_rng(3)
    first, second = (draw.standard_normal((n, 8 * 16)).astype(np.float32) for n in (5, 140))
    table = np.array([[[2, 0], [5, 0]], [[0, 1], [3, 4]]], np.int32)
    cache = np.zeros((2, 3, 128, 2, 16), np.float32)
    out, cache = attention([first[:-1], second[:-1]], table, cache, [0, 0])
    step, _ = attention([first[-1:], second[-1:]], table, cache, [4, 139])
    for rows, computed in (
        (first, np.concatenate([out[:4], step[:1]])),
        (second, np.concatenate([out[4:], step[1:]])),
    ):
        heads = torch.from_numpy(rows).reshape(len(rows), 8, 16).transpose(0, 1)
        key, value = (heads[n : n + 2].repeat_interleave(2, 0) for n in (4, 6))
        expected = torch.nn.functional.scaled_dot_product_attention(heads[:4], key, value, is_causal=True)
        assert np.abs(computed - expected.transpose(0, 1).numpy()).max() < 1e-5


def test_a_window_hides_what_is_before_it() -> None:
    draw = np.random.default_rng(4)
    query, key, value = (draw.standard_normal((9, 1, 4)).astype(np.float32) for _ in range(3))
    windowed = plugin_nodes.attend(query, key, value, 0, 1.0, 3)
    alone = plugin_nodes.attend(query[8:], key[6:], value[6:], 2, 1.0, 0)
    assert np.abs(windowed[8:] - alone).max() < 1e-6


def test_quantizers_of_both_sides_are_one() -> None:
    """The node's definition in NumPy and the reference's quantizer in PyTorch; zeros and saturation too."""
    x = np.random.default_rng(5).standard_normal((6, 64)).astype(np.float32) * 3
    x[2] = 0
    x[3, :16] = 1e4
    scale = np.float32(0.01)
    node = plugin_nodes.PLUGIN_NODES["trt", "TRT_FP4DynamicQuantize"]
    codes, scales = node.compute({}, (x, scale), True)
    blocks = scales.astype(np.float32) * scale
    expected = model_logits.quantize_fp4(torch.from_numpy(x), torch.tensor(scale)).numpy()
    assert np.array_equal(codes.astype(np.float32) * np.repeat(blocks, 16, axis=1), expected)
    eight = plugin_nodes.quantize_fp8(x / scale).astype(np.float32) * scale
    assert np.array_equal(eight, model_logits.quantize_fp8(torch.from_numpy(x), torch.tensor(scale)).numpy())


def node(op: str, domain: str, **attributes: Any) -> Graph:
    one = Node(op, domain, "n1", ("x",), ("y",), attributes)
    return Graph(Path("model.onnx"), {}, (one,), ("x",), ("y",), {})


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (node("SparseAttentionPlugin", "trt_edgellm"), "SparseAttentionPlugin, which has no definition"),
        (node("Gelu", "com.example"), "com.example::Gelu, which has no definition"),
        (node("TRT_FP4DynamicQuantize", "trt", block_size=32), "block_size = 32"),
        (node("Int4GroupwiseGemmPluginV2", "trt_edgellm", gemm_n=1, gemm_k=1),
         "lacks the attribute group_size"),
    ],
)  # fmt: skip
def test_a_node_without_a_definition_fails(graph: Graph, says: str) -> None:
    with pytest.raises(GateError, match=says.replace("(", r"\(")):
        check_nodes(graph)


SEQUENCES, TOKENS = "num_sequences", "physical_tokens"
CACHES = [f"{side}_key_values_{i}" for side in ("past", "present") for i in range(4)]
# What NVIDIA's exporter wrote for tiny-qwen3.
INTERFACE: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "inputs_embeds": ("FLOAT16", (TOKENS, 128)),
    **dict.fromkeys(CACHES[:4], ("FLOAT16", (2, "num_pages", 128, 4, 32))),
    "rope_rotary_cos_sin": ("FLOAT", (TOKENS, 32)), "positions": ("INT32", (TOKENS,)),
    "query_start_offsets": ("INT32", ("num_sequences + 1",)), "query_lengths": ("INT32", (SEQUENCES,)),
    "past_lengths": ("INT32", (SEQUENCES,)), "attention_sequence_lengths": ("INT32", (SEQUENCES,)),
    "state_indices": ("INT32", (SEQUENCES,)),
    "execution_phase_marker": ("INT32", ("execution_phase_extent",)),
    "context_sequence_count_carrier": ("INT32", ("num_context_sequences",)),
    "kv_page_table": ("INT32", (SEQUENCES, 2, "max_pages_per_seq")),
    "logits_indices": ("INT64", (SEQUENCES,)),
    "logits": ("FLOAT", (SEQUENCES, 2048)),
    **dict.fromkeys(CACHES[4:], ("FLOAT16", (2, "num_pages", 128, 4, 32))),
}  # fmt: skip


def scalar(name: str, value: float) -> Constant:
    return Constant(name, "FLOAT", (), np.array([value], np.float32).view(np.uint8))


def contract_graph(*more: Node, epsilon: float = 1e-6, norms: int = 9, **interface: Any) -> Graph:
    """Norms and an interface, as an export of tiny-qwen3 has them."""
    stated = {**INTERFACE, **interface}
    outputs = ("logits", *(n for n in stated if n.startswith(("present", "other"))))
    nodes = [
        Node(op, "", f"{op}{i}", inputs, (f"{op}{i}",), {})
        for i in range(norms)
        for op, inputs in (("Add", ("mean", "epsilon")), ("Sqrt", (f"Add{i}",)))
    ]
    constants = {"epsilon": scalar("epsilon", epsilon), "factor": scalar("factor", 1.001)}
    inputs = tuple(n for n in stated if n not in outputs)
    return Graph(Path("model.onnx"), constants, (*nodes, *more), inputs, outputs, {}, stated)


def check_contract(graph: Graph) -> None:
    source = read_export_source(TINY)
    graph_contract.check_contract(graph, source)


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (contract_graph(epsilon=1.1e-6), "epsilon is 1.1"),
        (contract_graph(norms=8), "8 norms in the graph, 9 in 4 layers"),
        (contract_graph(past_lengths=("INT64", (SEQUENCES,))), "past_lengths is INT64"),
        (contract_graph(query_lengths=("INT32", (3,))), r"query_lengths is INT32 \[3\]"),
        (contract_graph(other=("FLOAT16", ())), "output other has no place"),
        (contract_graph(extra=("INT32", ())), "input extra has no place"),
        (contract_graph(Node("Less", "", "n", ("positions", "x"), ("y",), {})), "positions is read by Less"),
        (contract_graph(Node("Clip", "", "n", ("x",), ("y",), {})), "n is Clip"),
        (contract_graph(Node("Mul", "", "n", ("x", "factor"), ("y",), {})), r"Mul \(n\) reads the number"),
        (contract_graph(Node("Pow", "", "n", ("x", "factor"), ("y",), {})), r"Pow \(n\) reads the number"),
        (contract_graph(Node("Gemm", "", "n", ("x", "y"), ("z",), {"alpha": 1.001})), "n has a factor"),
    ],
)  # fmt: skip
def test_what_is_known_exactly_is_compared_exactly(graph: Graph, says: str) -> None:
    check_contract(contract_graph())
    with pytest.raises(ExportError, match=says):
        check_contract(graph)


def test_sequences_go_beyond_a_window() -> None:
    assert export_gate.choose_questions(100, [None, 64, 64], 2048).prompts[-1] > 64
    # One that is beyond what the gate executes is compared, not executed.
    assert export_gate.choose_questions(100, [4096], 8192).prompts == list(export_gate.LENGTHS)
    # Of a small model one prompt crosses a page of the cache.
    small = export_gate.choose_source_questions(read_export_source(TINY))
    assert small.prompts[-1] == export_gate.LONG_PROMPT > export_gate.PAGE
    assert max(export_gate.choose_questions(100, [], 16).prompts) + export_gate.STEPS <= 16
    assert export_gate.choose_questions(100, [], 2048) == export_gate.choose_questions(100, [], 2048)


def test_nan_is_no_pass() -> None:
    good = np.array([[1.0, 2.0, 4.0]])
    with pytest.raises(GateError, match="NaN or infinity"):
        export_gate.relative_errors(good * np.nan, good)
    with pytest.raises(GateError, match="all equal"):
        export_gate.relative_errors(good, good * 0 + 1)


def test_the_page_lists_every_node_with_a_definition() -> None:
    text = PAGE.read_text()
    for domain, name in plugin_nodes.PLUGIN_NODES:
        assert f"`{domain}::{name}`" in text


# ---- NVIDIA's own programs


SIMULATED = ("fp8", "int8_sq")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits and checkpoints of ModelOpt's simulated models."""
    out = tmp_path_factory.mktemp("simulated")
    words = [sys.executable, HERE / "simulated.py", TINY, out, *SIMULATED]
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_a_dequantized_checkpoint_is_modelopts_quantized_model(name: str, simulated: Path) -> None:
    """ModelOpt's simulation of the quantized model, in float32, against the checkpoint that it wrote.

    NVFP4 is simulated on a GPU alone; of AWQ the exported weights are others than the simulated ones.
    """
    logits = np.load(simulated / name / "logits.npy")
    computed = model_logits.compute_model_logits(
        simulated / name / "checkpoint", [list(s) for s in QUESTIONS.sequences]
    )
    errors = [
        export_gate.relative_errors(a[: len(s)], b[: len(s)])
        for a, b, s in zip(computed[1], logits, QUESTIONS.sequences, strict=True)
    ]
    # The checkpoint's scales are in 16 bits; a value that falls to another code for it moves all after it.
    floor = export_gate.relative_errors(computed[2, -1], computed[1, -1])
    assert np.concatenate(errors).mean() < max(0.005, 2 * floor.mean())


@pytest.mark.slow
def test_layouts_of_int4_are_the_wheels(warm_python: Run) -> None:
    script = (
        "import numpy as np; from enginix.kinds.edgellm import int4_layouts as own;"
        "from tensorrt_edgellm.checkpoint import repacking as wheel\n"
        "pack = wheel.repack_to_cutedsl_fragment\n"
        "for n, k in ((64, 64), (128, 128), (192, 320), (576, 192), (256, 1024)):\n"
        "    codes = np.random.default_rng(n).integers(0, 16, (n, k)).astype(np.int16)\n"
        "    assert (own.restore_fragment_order(pack(codes), n, k) == codes).all()\n"
        "    assert (own.restore_interleaved_order(wheel._pack_intweights(codes), n, k) == codes).all()\n"
    )
    done = warm_python("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", *FORMATS])
def test_every_damage_is_noticed(
    name: str, exports: Callable[[str], Path], models: Callable[[str], Path], warm_python: Run
) -> None:
    done = warm_python(HERE / "damage.py", exports(name), models(name))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str] | None] = json.loads(done.stdout)
    assert [damage for damage, who in found.items() if who == {}] == []
    assert sum(who is not None for who in list(found.values())[:19]) == 19
    # The page says what was seen.
    column = read_rows(PAGE.read_text())
    assert {damage: cells[name] for damage, cells in column.items() if cells[name]} == make_rows(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu", "window", "layers-with-window"])
def test_an_export_of_another_function_fails(name: str, warm_python: Run, edge: Path, tmp_path: Path) -> None:
    """NVIDIA's untouched exporter, its status 0, and a graph that is not the model's."""
    model, export = tmp_path / "model", tmp_path / "export"
    write_model(name, model)
    done = warm_python(edge.parent / "tensorrt-edgellm-export", model, export, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    done = warm_python(HERE / "judge_export.py", export, model)
    assert done.returncode == 1 and "gate export failed" in done.stderr, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", *FORMATS])
def test_the_manifest_has_the_evidence(name: str, exports: Callable[[str], Path]) -> None:
    results = json.loads((exports(name) / "enginix.json").read_text())["results"]
    gate = results["exportGate"]
    assert results["gates"] == {"export": "passed"} and gate["graph"] == "export"
    assert (
        gate["bounds"]
        == load_table("gates")["gates"]["export"]["bounds"]["NO_QUANT" if name == "bf16" else "quantized"]
    )
    assert gate["plugins"]["AttentionPlugin"] == 4 and gate["errorAtMost"] <= 0.01
    assert (
        gate["prompts"] == [*export_gate.LENGTHS[:-1], export_gate.LONG_PROMPT]
        and gate["cachedSteps"] == export_gate.STEPS
    )
    assert results["scales"]["worstScaleChange"] < 0.001
    direct = results["directGate"]
    assert (
        direct["graph"] == "direct" and direct["bounds"] == gate["bounds"] and direct["errorAtMost"] <= 0.01
    )
    assert direct["plugins"]["AttentionPlugin"] == 4


@pytest.mark.slow
def test_damage_to_the_direct_graph_is_noticed(warm_python: Run) -> None:
    done = warm_python(HERE / "damage_direct.py", TINY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= 19 and [damage for damage, said in found.items() if said is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "nvfp4", "int4_awq"])
def test_the_direct_graph_is_one_for_all_gpus(
    name: str, models: Callable[[str], Path], warm_python: Run, tmp_path: Path
) -> None:
    """The export does not know its target: a builder that asked for one would make another graph here."""
    script = (
        "import sys; from pathlib import Path; from enginix.kinds.edgellm.execution import direct_graph as d;"
        "d._COMPUTE_CAPABILITY = tuple(map(int, sys.argv[3:]));"
        "d.record_direct_graph(*map(Path, sys.argv[1:3]))"
    )
    for sm in ("80", "110", "120"):
        done = warm_python("-c", script, models(name), tmp_path / sm, sm[:-1], sm[-1])
        assert done.returncode == 0, done.stderr
    written = [(tmp_path / sm / "llm.engine").read_bytes() for sm in ("80", "110", "120")]
    assert written[0] == written[1] == written[2]
