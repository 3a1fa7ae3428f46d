"""Ranks merged back are the source: over random architectures, shapes, heads and mappings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st
from merged_checkpoint import MergedCheckpoint

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.tables import load_table

ARCHITECTURES = sorted(load_table("architectures")["architectures"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], ConvertOptions]:
    architecture = draw(st.sampled_from(ARCHITECTURES))
    tp = draw(st.sampled_from([1, 2, 3, 4]))
    moe = "M" in architecture and ("Mixtral" in architecture or "Moe" in architecture)
    experts = draw(st.sampled_from([4, 6, 12]))
    ep = draw(st.sampled_from([d for d in (1, 2, 3, 4) if tp % d == 0 and experts % d == 0])) if moe else 1
    kv = draw(st.sampled_from([1, tp, 2 * tp]))
    heads = kv * draw(st.integers(1, 3))
    heads *= 1 if heads % tp == 0 else tp
    layers = draw(st.integers(1, 4))
    c = random_models.config(
        architecture,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=draw(st.sampled_from([2, 6, 8])),
        hidden_size=tp * draw(st.integers(2, 9)),
        intermediate_size=tp * draw(st.integers(1, 9)),
        num_hidden_layers=layers,
        vocab_size=draw(st.integers(1, 50)),
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        tie_word_embeddings=draw(st.booleans()),
    )
    if moe:
        c |= {"num_experts": experts, "num_local_experts": experts}
        c |= {"moe_intermediate_size": tp * draw(st.integers(1, 5))}
        c |= {"shared_expert_intermediate_size": tp * draw(st.integers(1, 5))}
    if architecture == "LlamaForCausalLM":
        c |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    pp = draw(st.integers(1, layers))
    each = draw(st.sampled_from([d for d in range(1, tp * pp + 1) if tp * pp % d == 0]))
    options = ConvertOptions(
        dtype=c["dtype"],
        mapping=CheckpointMapping(tp, pp, ep, each),
        parallel_embedding=draw(st.booleans()),
        embedding_sharding_dim=draw(st.integers(0, 1)),
    )
    return c, options


@settings(max_examples=120, deadline=None)
@given(requests(), st.integers(1, 3))
def test_merged_ranks_are_the_source(request: tuple[dict[str, Any], ConvertOptions], shards: int) -> None:
    c, options = request
    with tempfile.TemporaryDirectory() as name:
        model, out = Path(name) / "model", Path(name) / "out"
        source = random_models.write(model, c, shards=shards)
        convert_model(model, out, options)
        assert verify_checkpoint(out).findings == []
        merged = dict(MergedCheckpoint(out))
        if c["tie_word_embeddings"]:
            assert np.array_equal(merged.pop("lm_head.weight"), source["model.embed_tokens.weight"])
        assert merged.keys() == source.keys()
        for tensor, array in source.items():
            exact = (
                array.astype(np.float32)
                if "gate.weight" in tensor and merged[tensor].dtype != array.dtype
                else array
            )
            assert np.array_equal(merged[tensor].view(np.uint8), exact.view(np.uint8)), tensor


@settings(max_examples=30, deadline=None)
@given(requests())
def test_same_bytes_again(request: tuple[dict[str, Any], ConvertOptions]) -> None:
    """Nothing volatile: two runs give the same files, and so do other shards but for the manifest."""
    c, options = request
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for part, shards in (("a", 1), ("b", 1), ("c", 2)):
            random_models.write(base / part / "model", c, shards=shards)
            convert_model(base / part / "model", base / part / "out", options)
        files = sorted(p.name for p in (base / "a/out").iterdir())
        for file in files:
            first = (base / "a/out" / file).read_bytes()
            assert first == (base / "b/out" / file).read_bytes()
            assert file == "enginix.json" or first == (base / "c/out" / file).read_bytes()
