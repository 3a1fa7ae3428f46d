"""Options are typed before a program sees them."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.errors import UsageError
from enginix.kinds.edgellm import options
from enginix.kinds.edgellm.build import explain_missing_payload, resolve_edgellm_limits
from enginix.tables import load_table

STAGES = ("export", "build", "serve")


@given(
    stage=st.sampled_from(STAGES),
    chosen=st.dictionaries(
        st.sampled_from([n for s in STAGES for n in load_table("edgellm")[s]]) | st.text(max_size=8),
        st.integers() | st.booleans() | st.text(max_size=5) | st.none() | st.floats(allow_nan=False),
        max_size=4,
    ),
)
def test_whatever_is_given_is_words_or_a_usage_error(stage: str, chosen: dict[str, Any]) -> None:
    rows = load_table("edgellm")[stage]
    try:
        words = options.format_stage_flags(stage, chosen)
    except UsageError:
        return
    flags = {row["flag"]: name for name, row in rows.items()}
    parser = argparse.ArgumentParser()
    options.add_flags(parser, stage)
    assert all(name in rows for name in chosen)
    assert [w for w in words if w.startswith("--")] == [
        rows[n]["flag"] for n in sorted(chosen) if chosen[n] is not False
    ] or any(str(v).startswith("--") for v in chosen.values())
    assert set(w for w in words if w in flags) <= {rows[n]["flag"] for n in chosen}


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("export", "fp8Embedding", 1),
        ("export", "int4GemmPluginVersion", 3),
        ("export", "maxInputLen", 3),
        ("build", "maxBatchSize", 0),
        ("build", "maxBatchSize", True),
        ("serve", "reasoningParser", "qwen9"),
        ("serve", "apiKey", "secret"),
    ],
)
def test_a_wrong_option_is_named(stage: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        options.check_stage_options(stage, {option: value})


def test_limits_are_always_written_out() -> None:
    assert set(resolve_edgellm_limits({"maxBatchSize": 2})) == set(load_table("edgellm")["build"])
    with pytest.raises(UsageError, match="maxKvCacheCapacity"):
        resolve_edgellm_limits({"maxInputLen": 10, "maxKvCacheCapacity": 9})


def test_a_gpu_without_payload_is_told_which_have_one() -> None:
    rows = load_table("edgellm")["payloads"]
    for system in ("x86_64-linux", "aarch64-linux"):
        sms = {p["sm"] for p in rows if p["system"] == system}
        for name, row in load_table("gpus")["gpus"].items():
            refusal = explain_missing_payload(row["sm"], name, system)
            assert (refusal is None) == (row["sm"] in sms), name
            assert refusal is None or all(str(p["sm"]) in refusal for p in rows)
    assert "no aarch64 payload for SM 100" in str(explain_missing_payload(100, "b200", "aarch64-linux"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"maxBatchSize": 1 << 62}, "tokens of a step"),
        ({"maxKvCacheCapacity": 1 << 31}, "a KV cache of"),
        ({"maxInputLen": 1, "maxBatchSize": 1 << 30}, "pages of 128"),
    ],
)
def test_limits_that_the_builder_does_not_count(wanted: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_edgellm_limits(wanted)
