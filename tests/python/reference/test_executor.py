"""Prefill, cache and decode agree with one full forward pass; bad checkpoints are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from enginix.errors import CheckpointError, EnginixError, MachineError, UsageError
from enginix.reference import Executor
from enginix.reference import config as checkpoint_config
from enginix.reference.rope import RopeTables
from enginix.reference.rotary_scaling import ROPE_TYPES

CASES = ["llama-rope-llama3", "qwen3-bf16", "qwen2moe-bf16", "mixtral-bf16", "phi3-bf16", "qwen2-rope-yarn"]


@pytest.fixture(params=CASES)
def executor(request: pytest.FixtureRequest, golden: Path) -> Executor:
    return Executor.load(golden / request.param / "trtllm-tp1-bfloat16")


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 2e-6 * expected.norm())


def test_decoding_continues_prefill(executor: Executor) -> None:
    ids = [(7 * i + 3) % executor.config.vocab_size for i in range(40)]
    (expected,) = executor.forward([ids])
    cache = executor.new_cache(3)
    assert _close(executor.prefill(cache, 2, ids[:25]), expected[24])
    for at in range(25, 40):
        assert _close(executor.decode(cache, {2: ids[at]})[2], expected[at])


def test_a_prompt_may_come_in_pieces(executor: Executor) -> None:
    ids = list(range(5, 45))
    (expected,) = executor.forward([ids])
    cache = executor.new_cache(1)
    executor.prefill(cache, 0, ids[:11])
    executor.prefill(cache, 0, ids[11:12], extend=True)
    assert _close(executor.prefill(cache, 0, ids[12:], extend=True), expected[-1])


@pytest.mark.parametrize("lengths", [(9, 9, 9), (3, 17, 8), (25,)])
def test_prompts_computed_together_say_the_same(executor: Executor, lengths: tuple[int, ...]) -> None:
    prompts = {3 - n: [(5 * i + n) % 97 + 1 for i in range(count)] for n, count in enumerate(lengths)}
    together, alone = executor.new_cache(4), executor.new_cache(4)
    found = executor.prefill_all(together, prompts)
    for slot, ids in prompts.items():
        assert _close(found[slot], executor.prefill(alone, slot, ids))
    following = dict.fromkeys(prompts, 7)
    for slot, logits in executor.decode(together, following).items():
        assert _close(logits, executor.decode(alone, {slot: 7})[slot])
    with pytest.raises(UsageError, match="empty prompt"):
        executor.prefill_all(together, {0: [1], 1: []})


def test_no_bit_depends_on_the_rest_of_the_batch(executor: Executor) -> None:
    prompts = [[(i * j) % 97 + 1 for j in range(1, 4 + 9 * i)] for i in range(1, 5)]

    def run(slots: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        cache = executor.new_cache(4)
        for slot, ids in slots.items():
            executor.prefill(cache, slot, ids)
        for step in range(3):
            out = executor.decode(cache, {slot: 11 + step for slot in slots})
        return out

    together = run(dict(enumerate(prompts)))
    for slot, ids in enumerate(prompts):
        assert torch.equal(run({slot: ids})[slot], together[slot])
        other = (slot + 1) % 4
        assert torch.equal(run({other: ids})[other], together[slot])


def test_a_slot_is_as_new_after_reuse(executor: Executor) -> None:
    cache = executor.new_cache(1)
    executor.prefill(cache, 0, list(range(1, 40)))
    executor.decode(cache, {0: 1})
    again = executor.prefill(cache, 0, [5, 6, 7])
    assert torch.equal(again, executor.prefill(executor.new_cache(1), 0, [5, 6, 7]))


def test_the_cache_grows_and_keeps(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginix.reference.cache.BLOCK", 4)
    executor = Executor.load(golden / "qwen3-bf16/trtllm-tp1-bfloat16")
    ids = list(range(1, 31))
    (expected,) = executor.forward([ids])
    cache = executor.new_cache(2)
    executor.prefill(cache, 1, ids[:3])
    for at in range(3, 30):
        found = executor.decode(cache, {1: ids[at]})[1]
    assert cache.capacity >= 30 and _close(found, expected[-1])


def test_greedy_equals_transformers_generate(golden: Path, hugging_face: Callable[..., Any]) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    found = Executor.load(golden / "qwen3-bf16/trtllm-tp4-bfloat16").greedy(prompt, 30)
    model = hugging_face(golden / "qwen3-bf16/hf")
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert found == expected[0, len(prompt) :].tolist()


def test_greedy_ends_at_an_end_token_and_at_the_models_length(golden: Path) -> None:
    executor = Executor.load(golden / "qwen3-bf16/trtllm-tp1-bfloat16")
    free = executor.greedy([1, 2, 3], 20)
    assert executor.greedy([1, 2, 3], 20, {free[4]}) == free[: free.index(free[4]) + 1]
    assert len(executor.greedy([1] * 60, 100)) == executor.max_length - 60


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 3.0}]
)
def test_rope_scaling_from_the_checkpoint(
    golden: Path, tmp_path: Path, hugging_face: Callable[..., Any], scaling: dict[str, Any]
) -> None:
    """TensorRT-LLM's converter refuses dynamic scaling: it is put into a plain checkpoint and model.

    Its loader needs an alpha; 1.0 is what enginix writes.
    """
    model, checkpoint = tmp_path / "hf", tmp_path / "checkpoint"
    shutil.copytree(golden / "qwen3-bf16/hf", model)
    shutil.copytree(golden / "qwen3-bf16/trtllm-tp1-bfloat16", checkpoint)
    for path, key in ((model, "rope_scaling"), (checkpoint, "rotary_scaling")):
        config = json.loads((path / "config.json").read_text())
        config[key] = scaling if path == model or "type" in scaling else {**scaling, "alpha": 1.0}
        (path / "config.json").write_text(json.dumps(config))
    executor, reference = Executor.load(checkpoint), hugging_face(model)
    for count in (20, 64, 100):
        ids = [(5 * i) % 150 for i in range(count)]
        if count > executor.max_length:
            continue
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0]
        assert float((executor.forward([ids])[0] - expected).norm() / expected.norm()) < 1e-5


def _broken(golden: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    checkpoint = tmp_path / "broken"
    shutil.copytree(golden / "qwen3-bf16/trtllm-tp2-bfloat16", checkpoint)
    tensors = load_file(checkpoint / "rank1.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "rank1.safetensors")
    return checkpoint


QKV = "transformer.layers.1.attention.qkv.weight"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda t: t.pop(QKV), f"{QKV} is missing, expected BF16 [128, 48]"),
        (lambda t: t.update({QKV: t[QKV][:64].clone()}), f"{QKV} is BF16 [64, 48], expected BF16 [128, 48]"),
        (lambda t: t.update({QKV: t[QKV].float()}), f"{QKV} is F32 [128, 48], expected BF16 [128, 48]"),
        (
            lambda t: t.update({"transformer.layers.1.attention.qkv.bias": torch.ones(128)}),
            "qkv.bias is not a",
        ),
        (lambda t: t[QKV].fill_(float("nan")), "holds NaN or infinity"),
        (lambda t: t["transformer.ln_f.weight"].add_(1), "ranks 0 and 1 differ"),
    ],
)
def test_broken_tensors_are_named(
    golden: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        Executor.load(_broken(golden, tmp_path, change))
    assert message in str(caught.value)


def test_copies_of_a_shared_head_must_agree(golden: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(golden / "qwen3-bf16/trtllm-tp4-bfloat16", checkpoint)
    tensors = load_file(checkpoint / "rank3.safetensors")
    tensors[QKV][-1] += 1
    save_file(tensors, checkpoint / "rank3.safetensors")
    with pytest.raises(CheckpointError, match="ranks 2 and 3 differ in a shared key-value head"):
        Executor.load(checkpoint)


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_truncated_files_are_refused(golden: Path, tmp_path: Path, size: int) -> None:
    checkpoint = tmp_path / "cut"
    shutil.copytree(golden / "qwen3-bf16/trtllm-tp1-bfloat16", checkpoint)
    path = checkpoint / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="rank0"):
        Executor.load(checkpoint)


def test_missing_parts_are_named(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Executor.load(tmp_path)
    shutil.copy(golden / "qwen3-bf16/trtllm-tp2-bfloat16/config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no rank0\.safetensors"):
        Executor.load(tmp_path)


def test_impossible_prompts(golden: Path) -> None:
    executor = Executor.load(golden / "qwen3-bf16/trtllm-tp1-bfloat16")
    for prompt in ([], [160], [-1], [1] * 65):
        with pytest.raises(UsageError):
            executor.forward([prompt])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(golden: Path) -> None:
    with pytest.raises(MachineError, match="no CUDA device"):
        Executor.load(golden / "qwen3-bf16/trtllm-tp1-bfloat16", device="cuda")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats()
    | st.text(max_size=5)
    | st.just({})
    | st.just([])
)
KEYS = [
    "architecture",
    "dtype",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "rotary_embedding_dim",
    "rotary_scaling",
    "rotary_base",
    "moe",
    "mapping",
    "quantization",
    "norm_epsilon",
    "position_embedding_type",
    "use_parallel_embedding",
    "embedding_sharding_dim",
    "max_position_embeddings",
    "attn_bias",
    "intermediate_size",
]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.dictionaries(
        st.sampled_from(["tp_size", "pp_size", "moe_ep_size", "world_size", "cp_size", "moe_tp_size"]), VALUES
    ),
)
def test_any_configuration_is_read_or_refused(changes: dict[str, Any], mapping: dict[str, Any]) -> None:
    raw: dict[str, Any] = {
        "architecture": "Qwen3MoeForCausalLM", "dtype": "bfloat16", "vocab_size": 160, "hidden_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 88,
        "max_position_embeddings": 64, "mapping": mapping, "hidden_act": "swiglu",
        "moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 1},
        "position_embedding_type": "rope_gpt_neox",
    }  # fmt: skip
    try:
        checkpoint_config.parse_executor_config({**raw, **changes}, "config.json")
    except EnginixError as e:
        assert str(e).startswith("config.json") and e.fix


SCALING = st.fixed_dictionaries(
    {
        "rope_type": st.sampled_from([*ROPE_TYPES, "default", "other"]),
        "factor": st.just(4.0) | st.floats(0),
    },
    optional={
        key: st.none() | st.integers(0, 64) | st.floats(0, 1e31) | st.floats() | st.text(max_size=2)
        for key in (
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
            "alpha",
        )
    }
    | {key: st.lists(st.floats(0), min_size=6, max_size=6) for key in ("short_factor", "long_factor")},
)


@settings(max_examples=500, deadline=None)
@given(SCALING, st.sampled_from([2, 12]))
def test_any_rope_scaling_is_refused_or_has_finite_tables(scaling: dict[str, Any], rotated: int) -> None:
    raw = {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "vocab_size": 160,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 88,
        "max_position_embeddings": 64,
        "rotary_pct": rotated / 12,
        "rotary_scaling": scaling,
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
    }
    try:
        config = checkpoint_config.parse_executor_config(raw, "config.json")
    except CheckpointError:
        return
    frequencies, attention = RopeTables(config, torch.device("cpu")).frequencies(100)
    assert frequencies.shape == (rotated // 2,) and bool(torch.isfinite(frequencies).all())
    assert 0 < attention < float("inf")


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**9}, {"mapping": {"pp_size": 10**9}}, {"hidden_size": 10**9}]
)
def test_enormous_sizes_are_refused_at_once(golden: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(golden / "qwen3-bf16/trtllm-tp1-bfloat16", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError):
        Executor.load(checkpoint)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_config_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint_config.read_executor_config(directory)
