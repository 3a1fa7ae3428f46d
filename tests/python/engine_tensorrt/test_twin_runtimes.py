"""Runtimes, described and listed: evaluation (nix/check) and the command line agree."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

from enginix.machine.gpu_table import find_gpu
from enginix.machine.target import find_target
from enginix.runtime.preflight import check_support, require_kind_support
from enginix.runtime.unlisted import make_unlisted_row
from enginix.tables import load_table
from nix_evaluation import evaluate, needs_nix, said

pytestmark = needs_nix

_LIKE = {"like": "trtllm-1.4.0rc1", "image": "nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc2"}
_OLD = {"like": "trtllm-1.2.1", "image": "localhost:5000/triton:26.12"}
_NEW = {"tensorrtLlm": "1.4.0rc2"}
DESCRIPTIONS = [
    {**_LIKE, "versions": _NEW},
    {**_LIKE, "versions": {**_NEW, "driver": "600.10", "cuda": "13.4.1", "torch": ">=2.14,<=2.15"}},
    {**_LIKE, "image": "a.b/c@sha256:" + "0" * 64, "versions": _NEW},
    {**_LIKE, "image": "a.b:5000/c/d:mine@sha256:" + "0" * 64, "versions": _NEW},
    {**_OLD, "versions": {"tensorrtLlm": "1.2.2", "tritonServer": "2.76.0"}},
    {**_OLD, "versions": {"tensorrtLlm": "1.3.0rc20"}},
    {**_OLD, "versions": {"tensorrtLlm": "1.3.0a1.dev20260101"}},
    {**_LIKE, "versions": {"tensorrtLlm": "1.4.0rc2"}, "image": "a.b/c:latest"},
    *(
        {**_LIKE, "versions": _NEW, "image": f"a.b/c:{tag}"}
        for tag in (
            "v1.4.0rc2", "1.4.0rc2-foo", "foo-1.4.0rc2", "trtllm1.4.0rc2_x86", "cuda13.1.0-1.4.0rc2",
            "1.4.0rc2foo", "26.12-trtllm-python-py3", "1.3", "1.3.0.4", "rc20", "2026.11.30.1",
        )
    ),
]  # fmt: skip
WRONG_DESCRIPTIONS = [
    {**_LIKE, "like": "trtllm-1.4.0", "versions": _NEW},
    {**_LIKE, "like": "edgellm-0.11.0", "versions": _NEW},
    {**_LIKE, "like": "reference", "versions": _NEW},
    {**_LIKE, "like": 5, "versions": _NEW},
    {**_LIKE, "versions": {}},
    {**_LIKE, "versions": ["1.4.0rc2"]},
    {**_LIKE, "versions": {"tensorrtLlm": 1}},
    {**_LIKE, "versions": {"tensorrtLlm": "newest"}},
    {**_LIKE, "versions": {"tensorrtLlm": "1.04.0"}},
    {**_LIKE, "versions": {"tensorrtLlm": "1.4.0rc3"}},
    {**_LIKE, "versions": {**_NEW, "tensorrtllm": "1.4.0rc2"}},
    {**_LIKE, "versions": {**_NEW, "cuda": "13;4"}},
    {**_LIKE, "versions": {**_NEW, "driver": "new"}},
    {**_LIKE, "versions": {**_NEW, "tritonServer": "2.76.0"}},
    *(
        {**_LIKE, "versions": _NEW, "image": i}
        for i in ("", "a", "a.b/c", "a.b/c:", "A.b/c:d", "a b/c:d", None)
    ),
    *(
        {**_OLD, "versions": {"tensorrtLlm": v}}
        for v in ("1.3.0rc21", "1.3.0", "1.3.1rc1", "2.0.0", "1.10.0")
    ),
    # The tag contradicts the version, with anything before and after it.
    *(
        {**_LIKE, "versions": _NEW, "image": f"a.b/c:{tag}"}
        for tag in (
            "1.3.0rc20", "1.3.0rc20-foo", "foo-1.3.0rc20", "v1.3.0rc20", "trtllm1.3.0rc20", "1.3.0rc20foo",
            "1.4.0rc20-x", "1.4.0", "1.4.0rc2.dev1", "x_1.2.0_y", "1.4.0rc20@sha256:" + "0" * 64,
        )
    ),
]  # fmt: skip


def test_runtimes_that_the_table_does_not_have(tmp_path: Path) -> None:
    cases = [*DESCRIPTIONS, *WRONG_DESCRIPTIONS]
    nix = evaluate('map (d: value (check.runtime.unlisted "f" d)) data', cases, tmp_path)

    def make(description: Any) -> dict[str, Any]:
        name, row = make_unlisted_row(description)
        return {"id": name, **row}

    assert nix == [said(lambda d=d: make(d)) for d in cases]
    accepted = nix[: len(DESCRIPTIONS)]
    assert all(row["id"].endswith("-unverified") and row["verified"] is False for row in accepted)
    assert not any(nix[len(DESCRIPTIONS) :])


def test_every_row_has_the_formats_of_its_sm() -> None:
    for name in load_table("gpus")["gpus"]:
        row = find_gpu(name)
        assert find_gpu(f"sm{row.sm}").formats == row.formats, name


def test_support(tmp_path: Path, chance: random.Random) -> None:
    algorithms = [None, *load_table("number_formats")["algorithms"], "FP9"]
    caches = [None, "FP8", "INT8", "NVFP4"]
    architectures = ["Qwen3ForCausalLM", "GptOssForCausalLM"]
    one_of_each_sm = sorted({row["sm"]: name for name, row in load_table("gpus")["gpus"].items()}.values())
    cells = list(itertools.product(algorithms, caches, architectures, one_of_each_sm))
    if not os.environ.get("ENGINIX_SLOW"):
        cells = chance.sample(cells, len(cells) // 3)
    nix = evaluate(
        """map (c: let
          gpu = gpus.${builtins.elemAt c 3} // { name = builtins.elemAt c 3; };
        in accepts [
          (check.target.quantization "e" null (builtins.elemAt c 0) gpu)
          (check.target.kvCache "e" null (builtins.elemAt c 1) gpu)
          (check.target.architecture "e" (builtins.elemAt c 2))
        ]) data""",
        cells,
        tmp_path,
    )

    def check_cell(quantization: str | None, cache: str | None, architecture: str, name: str) -> list[str]:
        require_kind_support("tensorrt", find_target(name))
        return check_support(quantization, cache, architecture, find_target(name))

    mine = [said(lambda c=c: check_cell(*c)) is not None for c in cells]
    assert nix == mine and True in mine and False in mine
