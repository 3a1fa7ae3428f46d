"""Evaluation (nix/check) and the command line refuse and write the same: one table, two readers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix import letter_case
from enginix.errors import UsageError
from enginix.kinds.llmapi import llmapi_engine
from enginix.kinds.registry import KIND_NAMES
from enginix.kinds.tensorrt.build import options
from enginix.kinds.tensorrt.build.effective_build import parse_arguments
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.option_rules import BuildFacts, resolve_options
from enginix.kinds.tensorrt.build.request import BuildRequest, predict_effective_build
from enginix.machine.gpu_table import find_gpu
from enginix.machine.kind_support import explain_unsupported_gpu, list_running_kinds
from enginix.machine.target import find_target
from enginix.quantize.formats import resolve_format
from enginix.runtime import table as runtimes
from enginix.runtime.preflight import check_support, require_kind_support
from enginix.runtime.unlisted import make_unlisted_row
from enginix.tables import load_table
from golden_requests import golden_rows

ROOT = Path(__file__).parents[3]
NIX = shutil.which("nix-instantiate")
pytestmark = pytest.mark.skipif(NIX is None, reason="Nix is not installed")


def evaluate(expression: str, data: Any, tmp_path: Path) -> Any:
    """A Nix expression over `check` and `data`; `accepts e`: e evaluates; `value e`: its value or null."""
    (tmp_path / "data.json").write_text(json.dumps(data))
    whole = f"""
      let
        lib = import {ROOT}/tests/hostpkgs/lib.nix;
        check = import {ROOT}/nix/check {{ inherit lib; }};
        gpus = (lib.importJSON {ROOT}/python/enginix/data/machine/gpus.json).gpus;
        data = lib.importJSON {tmp_path}/data.json;
        try = e: builtins.tryEval (builtins.deepSeq e e);
        accepts = e: (try e).success;
        value = e: let t = try e; in if t.success then t.value else null;
      in {expression}"""
    line = [str(NIX), "--eval", "--strict", "--json", "-E", whole]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def said(call: Any) -> Any:
    try:
        return call()
    except UsageError:
        return None


# As people write them; the names that were unknown once are among them.
GPU_NAMES = [
    *("rtx-4080", "rtx-4070", "rtx-3060", "rtx-5070-ti", "t4"),
    *("a30", "l20", "h20", "h100-nvl", "h200-nvl"),
    *("rtx-2080-ti", "rtx-pro-2000", "rtx-a5000", "v100", "a10g"),
    *("vr200", "a100", "sm89-16gb", "sm120-12gb", "sm103"),
    *("SM75-8GB", "RTX 4090", "GeForce RTX 4090", "rtx4080", "Tesla T4"),
    *("NVIDIA GeForce RTX 4070 Ti SUPER", "A100 80GB", "NVIDIA H100 NVL", "RTX 6000 Ada", "DGX Spark"),
    *("Jetson AGX Thor", "RTX_PRO_6000", "l40s", "L40S", "RTX 4060 Ti"),
    *("rtx-5060-ti", "rtx-3080", "A800", "rtx-a2000", "jetson-agx-orin"),
    # As drivers, catalogues and people in a hurry write them.
    *(
        "RTX 4060 Ti 16GB",
        "RTX 4060 Ti 16 GB",
        "GeForce RTX 2080 Ti",
        "rtx2080ti",
        "rtx 3090ti",
        "4090",
        "3060 ti",
    ),
    *(
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "RTX PRO 6000 Blackwell",
    ),
    *(
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX PRO 4500 Blackwell",
        "RTX PRO 5000 72GB",
    ),
    *(
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "H100 SXM5",
        "H200 141GB",
        "B200 192GB",
        "GB200 NVL72",
        "GB300",
    ),
    *(
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100 80GB PCIe",
        "Tesla V100-SXM2-16GB",
        "A6000",
    ),
    *(
        "NVIDIA GH200 480GB",
        "GH200",
        "Grace Hopper",
        "Jetson Thor",
        "Jetson AGX Orin",
        "Jetson Orin Nano",
        "Rubin",
    ),
    *(
        "Vera Rubin",
        "TITAN RTX",
        "Titan V",
        "RTX 3050",
        "RTX 2080 SUPER",
        "RTX 2060 SUPER",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "RTX 5090 D",
    ),
    *(
        "GeForce RTX™ 4090",
        "NVIDIA® GeForce RTX 4090 24GB",
        "L40S 48GB",
        "NVIDIA L4 Tensor Core GPU",
        "rtx_5080 16gb",
    ),
    # Kubernetes' label nvidia.com/gpu.product, clouds, vGPU profiles, slices of MIG.
    *("NVIDIA-A100-SXM4-80GB-SHARED", "NVIDIA-L40S-SHARED", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"),
    *("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb.me", "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb", "NVIDIA-H100-80GB-HBM3"),
    *("nvidia-h100-mega-80gb", "nvidia-tesla-t4", "nvidia-tesla-a100", "nvidia-a100-80gb"),
    *("nvidia-h200-141gb", "nvidia-rtx-pro-6000", "nvidia-gb200", "nvidia-b200", "nvidia-l4"),
    *(
        "A10-12Q",
        "NVIDIA A10-24Q",
        "GRID A100-10C",
        "NVIDIA A100-4-20C",
        "L40S-48Q",
        "NVIDIA RTX6000-Ada-48Q",
    ),
    *("B300 SXM6 AC", "NVIDIA GH200 144G HBM3e", "NVIDIA H20-3e", "NVIDIA A800 40GB Active", "A100 80G"),
    *(
        "RTX6000Ada",
        "rtxpro6000",
        "RTXA6000",
        "4070tisuper",
        "5090dv2",
        "RTX 5090 D v2",
        "H100SXM5",
        "h100pcie",
    ),
    *(
        "NVIDIA RTX 5000 Ada Generation Laptop GPU",
        "NVIDIA RTX A5500 Laptop GPU",
        "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU",
        "rtx4090laptop",
    ),
    *(
        "rtx 4090 48GB",
        "a16-16gb",
        "a100-40gb-40gb",
        "sm130-64gb-unlisted",
        "sm130-unlisted",
        "jetson-t4000-64gb",
    ),
    *("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb", "h100-1g.10gb"),
    *("NVIDIA-A100-SXM4-40GB-MIG-1c.2g.10gb", "A100-1-5CME"),
    *("NVIDIA H100XM-80C", "NVIDIA H100L-94C", "GRID A100D-40C", "GRID A100DX-1-10C", "GRID A100X-40C"),
    *("GRID V100D-32Q", "GRID RTX6000-24Q", "GRID RTX8000P-48C", "NVIDIA H200X-141C"),
    *("NVIDIA RTX Pro 6000 Blackwell DC-48Q", "NVIDIA RTX Pro 6000 Blackwell DC-4-96Q"),
    *("AGX Thor", "Jetson AGX Thor Developer Kit", "NVIDIA Jetson AGX Orin Developer Kit", "AGX Orin 64GB"),
    *("Orin NX 16GB", "Orin NX", "Jetson Orin Nano Super", "IGX Thor", "NVIDIA IGX Orin", "DRIVE AGX Thor"),
    *(
        "NVIDIA RTX A3000 12GB Laptop GPU",
        "RTX 6000 Pro",
        "RTX_PRO_6000_WS",
        "Q_RTX_8000",
        "H100_NVLINK_80GB",
    ),
]
# What is another part than the name's beginning.
TOLD_APART = {
    "RTX PRO 5000 72GB": ("rtx-pro-5000-72gb", 72 * 10**9),
    "NVIDIA GH200 480GB": ("gh200", 96 * 10**9),
    "NVIDIA GH200 144G HBM3e": ("gh200-144gb", 144 * 10**9),
    "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb": ("a100-5gb", 5 * 10**9),
    # Forty gigabytes of the larger part, whose other half has another engine's memory.
    "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb": ("a100-40gb", 40 * 10**9),
    "NVIDIA-A100-SXM4-80GB-SHARED": ("a100-80gb", 80 * 10**9),
    "nvidia-h100-mega-80gb": ("h100", 80 * 10**9),
    "A10-12Q": ("a10-12gb", 12 * 10**9),
    "NVIDIA A10-24Q": ("a10", 24 * 10**9),
    "NVIDIA A100-4-20C": ("a100-20gb", 20 * 10**9),
    "NVIDIA RTX 5000 Ada Generation Laptop GPU": ("rtx-5000-ada-laptop", 0),
    "RTX 5090 D v2": ("rtx-5090-d-v2", 24 * 10**9),
    "RTX6000Ada": ("rtx-6000-ada", 48 * 10**9),
    "rtx 4090 48GB": ("rtx-4090-48gb", 48 * 10**9),
    "sm130-64gb-unlisted": ("sm130-64gb-unlisted", 64 * 10**9),
    "H100 80GB": ("h100", 80 * 10**9),
    "A100 80GB": ("a100-80gb", 80 * 10**9),
    "RTX 3060": ("rtx-3060-8gb", 8 * 10**9),
    "4090 D": ("rtx-4090-d", 24 * 10**9),
    "RTX 2060 12GB": ("rtx-2060-12gb", 12 * 10**9),
    "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb": ("h100-10gb", 10 * 10**9),
    "NVIDIA H100XM-80C": ("h100", 80 * 10**9),
    "NVIDIA H100L-94C": ("h100-nvl", 94 * 10**9),
    "GRID A100DX-1-10C": ("a100-10gb", 10 * 10**9),
    "NVIDIA RTX Pro 6000 Blackwell DC-4-96Q": ("rtx-pro-6000", 96 * 10**9),
    "GRID RTX6000-24Q": ("quadro-rtx-6000", 24 * 10**9),
    "Jetson AGX Thor Developer Kit": ("jetson-t5000", 128 * 10**9),
    "AGX Orin 64GB": ("jetson-agx-orin-64gb", 64 * 10**9),
    "Jetson Orin Nano Super": ("jetson-orin-nano-8gb", 8 * 10**9),
    "NVIDIA RTX A3000 12GB Laptop GPU": ("rtx-a3000-laptop-12gb", 12 * 10**9),
}
# No part for any kind: the reason is said, and no other part is offered.
FOREIGN_GPU_NAMES = [
    "MI300X",
    "AMD Instinct MI250",
    "Radeon RX 7900 XTX",
    "Arc A770",
    "Gaudi3",
    "M3 Max",
    "M4",
]
FOREIGN_GPU_NAMES += ["P100-PCIE-16GB", "Tesla P40", "K80", "M60", "GTX 1080 Ti", "Quadro P6000", "TITAN Xp"]
UNKNOWN_GPU_NAMES = ["h2000", "", "sm", "sm89-gb", "sm9-16gb", "sm61-8gb", "rtx 4071", "rtx-", "a"]
UNKNOWN_GPU_NAMES += [
    "gtx 1080 ti",
    "P40",
    "Quadro",
    "RTX",
    "gb",
    "16 gb",
    "16gb",
    "rtx 4071 16gb",
    "laptop",
    "ti",
]
# No GPU has these SMs.
UNKNOWN_GPU_NAMES += [
    "sm95-16gb",
    "sm999-16gb",
    "sm130-64gb",
    "sm104",
    "sm61-8gb-unlisted",
    "sm89-16gb-listed",
]
UNKNOWN_GPU_NAMES += [
    "RTX 6000",
    "Grace",
    "blackwell",
    "h100-0gb",
    "; rm -rf /",
    "ｒｔｘ-4090",
    "../h100",
    "h100\n",
]


def test_gpu_names(tmp_path: Path) -> None:
    names = [*load_table("gpus")["gpus"], *GPU_NAMES, *UNKNOWN_GPU_NAMES]
    shown = "{ inherit (g) name sm formats; memory = check.plan.memoryOf g; }"
    nix = evaluate(f'map (n: value (let g = check.gpus.find "e" n; in {shown})) data', names, tmp_path)

    def describe(name: str) -> dict[str, Any]:
        row = find_gpu(name)
        return {"name": row.name, "sm": row.sm, "formats": list(row.formats), "memory": row.memory or None}

    assert nix == [said(lambda n=n: describe(n)) for n in names]
    known = dict(zip(names, nix, strict=True))
    assert [n for n in GPU_NAMES if known[n] is None] == []
    assert [n for n in UNKNOWN_GPU_NAMES if known[n] is not None] == []
    for name, (row, memory) in TOLD_APART.items():
        assert (find_gpu(name).name, find_gpu(name).memory) == (row, memory), name


def test_a_part_for_no_kind_is_told_from_a_mistake(tmp_path: Path) -> None:
    assert evaluate('map (n: value (check.gpus.find "e" n)) data', FOREIGN_GPU_NAMES, tmp_path) == [
        None
    ] * len(FOREIGN_GPU_NAMES)
    for name in FOREIGN_GPU_NAMES:
        with pytest.raises(UsageError, match=r"is no GPU of NVIDIA|is older than SM 70") as refusal:
            find_gpu(name)
        assert "did you mean" not in (refusal.value.fix or ""), name


# What drivers, clouds and people write around a part's name.
DECORATIONS = ["{}", "NVIDIA {}", "nvidia-{}-shared", "{} 48GB", "{}-12q", "{} Laptop GPU", "{}-mig-1g.10gb"]
DECORATIONS += ["{}ti", "{} 80g", "rtx{}", "grid {}-2-8c", "{}-unlisted", "{}_sxm5", "Tesla {}-16gb", "{}d"]


# An example is an evaluation of a hundred names or more.
@settings(max_examples=4 if os.environ.get("ENGINIX_SLOW") else 2, deadline=None)
@given(
    names=st.lists(
        st.builds(
            str.format,
            st.sampled_from(DECORATIONS),
            st.sampled_from([*load_table("gpus")["gpus"], *GPU_NAMES])
            | st.from_regex("sm[0-9]{2,3}", fullmatch=True),
        ),
        min_size=100,
        max_size=200,
    )
)
def test_any_name_is_read_or_refused_in_both(tmp_path_factory: Any, names: list[str]) -> None:
    shown = "{ inherit (g) name sm; memory = check.plan.memoryOf g; kinds = check.kindSupport.running g; }"
    expression = f'map (n: value (let g = check.gpus.find "e" n; in {shown})) data'
    nix = evaluate(expression, names, tmp_path_factory.mktemp("names"))

    def describe(name: str) -> dict[str, Any]:
        row = find_gpu(name)
        kinds = list_running_kinds(row)
        return {"name": row.name, "sm": row.sm, "memory": row.memory or None, "kinds": kinds}

    assert nix == [said(lambda n=n: describe(n)) for n in names]
    for row in filter(None, nix):  # the name that is written into a manifest is a name
        assert find_gpu(row["name"]).memory == (row["memory"] or 0), row


def test_kinds_on_gpus(tmp_path: Path) -> None:
    """Both refuse the same kinds on the same GPUs with the same releases, and name the same way out."""
    gpus = [*load_table("gpus")["gpus"], "sm72-16gb", "sm88-16gb", "sm130-16gb-unlisted", "rtx-4090-48gb"]
    versions = [None, "1.2.1", "1.3.0rc20", "1.4.0rc0", "1.4.0", "1.10.0rc1"]
    cases = list(itertools.product(KIND_NAMES, gpus, versions))
    data = [{"kind": k, "gpu": g, "version": v} for k, g, v in cases]
    nix = evaluate(
        'map (c: check.kindSupport.explain c.kind (check.gpus.find "e" c.gpu) c.version) data', data, tmp_path
    )
    for case, theirs in zip(cases, nix, strict=True):
        kind, name, version = case
        ours = explain_unsupported_gpu(kind, find_gpu(name), version)
        assert (ours is None) == (theirs is None), case
        if ours is not None:  # the same kinds, or the same release
            gpu = find_gpu(name)
            for text in (ours.why, theirs):  # no list of SMs that the kind runs on has the GPU's own
                listed = re.match(r"kind \w+ runs on SM ([0-9, ]+);", text)
                assert listed is None or str(gpu.sm) not in listed[1].split(", "), (case, text)
                assert gpu.system is None or f"SM {gpu.sm} with" not in text or gpu.system in text, (
                    case,
                    text,
                )
            assert re.findall(r'"([a-z]+)"', ours.fix) == re.findall(
                r'"([a-z]+)"', theirs.split(" Use ")[1]
            ), case
            assert re.findall("trtllm-[0-9a-z.]+", ours.fix) == re.findall("trtllm-[0-9a-z.]+", theirs), case
    assert nix[cases.index(("llmapi", "t4", None))] is not None
    assert nix[cases.index(("llmapi", "vr200", "1.2.1"))] is not None
    assert nix[cases.index(("llmapi", "vr200", "1.4.0rc0"))] is None


def test_quantized_models_for_gpus(tmp_path: Path) -> None:
    """``enginix quantize --target`` and mkQuantized take the same formats for the same GPUs."""
    formats = {n: row["algorithm"] for n, row in load_table("quantize")["formats"].items()}
    gpus = ["t4", "rtx-3090", "l4", "h200", "b200", "rtx-5090", "vr200", "jetson-t5000", "igx-orin", "gb10"]
    cases = list(itertools.product(formats, gpus))
    data = [{"algorithm": formats[name], "gpu": gpu} for name, gpu in cases]
    words = '{ architecture = null; format = f: "format ${f}"; artefacts = "Models"; }'
    checked = f'check.target.quantizationBy {words} "e" c.algorithm (check.gpus.find "e" c.gpu)'
    nix = evaluate(f"map (c: accepts ({checked})) data", data, tmp_path)
    python = [said(lambda n=n, g=g: bool(resolve_format(name=n, target_name=g))) is True for n, g in cases]
    assert nix == python, [case for case, a, b in zip(cases, nix, python, strict=True) if a != b]
    assert (
        python[cases.index(("int4_awq", "jetson-t5000"))]
        and not python[cases.index(("int8_wo", "jetson-t5000"))]
    )


def test_nvfp4_without_its_hardware(tmp_path: Path) -> None:
    """A runtime that has Marlin's kernels on an SM is taken, in both; an older one is refused."""
    cases = list(
        itertools.product(
            ["NVFP4", "FP8", None], ["h200", "l40s", "a100-80gb", "b200", "rtx-4090-48gb"],
            ["trtllm-1.1.0", "trtllm-1.2.1", "trtllm-1.3.0rc20", "trtllm-1.3.0rc29", "trtllm-1.4.0rc1"],
            ["bfloat16", "float16", None],
        )
    )  # fmt: skip
    data = [{"format": f, "gpu": g, "runtime": r, "dtype": d} for f, g, r, d in cases]
    rows = f"(lib.importJSON {ROOT}/python/enginix/data/runtime/runtimes.json).runtimes"
    nix = evaluate(
        f"""map (c: let gpu = check.gpus.find "e" c.gpu; in accepts [
          (check.target.computes "e" c.format gpu)
          (check.target.fallback "e" c.format gpu ({rows}.${{c.runtime}} // {{ id = c.runtime; }}) c.dtype)
        ]) data""",
        data,
        tmp_path,
    )

    def resolve(format_: str | None, gpu: str, runtime: str, dtype: str | None) -> bool:
        found = runtimes.find_runtime(runtime, "llmapi")
        try:
            llmapi_engine.resolve_format_arguments(find_target(gpu), found, format_, dtype, False)
        except UsageError:
            return False
        return True

    ours = [resolve(*case) for case in cases]
    assert nix == ours
    taken = dict(zip(cases, ours, strict=True))
    assert taken["NVFP4", "h200", "trtllm-1.3.0rc20", "bfloat16"]
    assert not taken["NVFP4", "h200", "trtllm-1.2.1", "bfloat16"]
    assert not taken["NVFP4", "h200", "trtllm-1.4.0rc1", "float16"]
    assert not taken["NVFP4", "l40s", "trtllm-1.3.0rc20", "bfloat16"]
    assert taken["NVFP4", "l40s", "trtllm-1.4.0rc1", None]
    assert not taken["NVFP4", "a100-80gb", "trtllm-1.4.0rc1", None]


def test_marlins_arguments_are_written() -> None:
    runtime = runtimes.find_runtime("trtllm-1.4.0rc1", "llmapi")

    def resolve(gpu: str, has_experts: bool) -> dict[str, Any]:
        return llmapi_engine.resolve_format_arguments(
            find_target(gpu), runtime, "NVFP4", "bfloat16", has_experts
        )

    dense = {"nvfp4_gemm_config": {"allowed_backends": ["marlin"]}}
    assert resolve("h200", False) == dense
    assert resolve("h200", True) == {**dense, "moe_config": {"backend": "MARLIN"}}
    assert resolve("b200", True) == {}


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


def test_support(tmp_path: Path) -> None:
    algorithms = [None, *load_table("number_formats")["algorithms"], "FP9"]
    caches = [None, "FP8", "INT8", "NVFP4"]
    architectures = ["Qwen3ForCausalLM", "GptOssForCausalLM"]
    one_of_each_sm = sorted({row["sm"]: name for name, row in load_table("gpus")["gpus"].items()}.values())
    cells = list(itertools.product(algorithms, caches, architectures, one_of_each_sm))
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


def test_limits(tmp_path: Path) -> None:
    profiles: list[dict[str, int]] = [{}, {"maxBatchSize": 4, "maxNumTokens": 4096}]
    cases = [
        {
            "profile": profile,
            "context": context,
            "given": {k: v for k, v in zip(names, values, strict=True) if v is not None},
        }
        for names in [("maxBatchSize", "maxSeqLen", "maxInputLen", "maxNumTokens")]
        for context in (None, 2048)
        for profile in profiles
        for values in itertools.product((None, 1, 64), (None, 16, 4096), (None, 1, 32), (None, 8, 512))
    ]
    nix = evaluate('map (c: value (check.limits.resolve "e" c c.profile c.given)) data', cases, tmp_path)
    mine = [
        said(lambda c=c: vars(options.resolve_limits(c["context"], c["given"], c["profile"]))) for c in cases
    ]
    assert nix == mine and None in mine and any(mine)


MODELS = [
    BuildFacts("FP8", "FP8", 90, "MixtralForCausalLM", 2),
    BuildFacts("FP8", None, 100, "LlamaForCausalLM", 1),
    BuildFacts("NVFP4", "FP8", 120, "Qwen3ForCausalLM", 4),
    BuildFacts(None, None, 80, "LlamaForCausalLM", 1),
    BuildFacts(None, "FP8", 89, None, 2),
    BuildFacts("W4A16_AWQ", "INT8", 90, "Qwen2ForCausalLM", 1),
    BuildFacts("FP8", "FP8", 90, "LlamaForCausalLM", 2, 4),
    BuildFacts("NVFP4", None, 100, "LlamaForCausalLM", 2, strategy="llm-api"),
]


def test_options(tmp_path: Path) -> None:
    values = [True, False, 0, 64, -1, "auto", "fp8", "paged", "disabled", "nonsense", ["a", "b"]]
    names = [*load_table("build_options")["options"], "maxOutputLen", "outputDir", "maxBatchSize", "nonsense"]
    asked: list[dict[str, Any]] = [{name: v} for name in names for v in values]
    asked += [
        {"reduceFusion": True, "userBuffer": True},
        {"multipleProfiles": True, "optNumTokens": 8},
        {"contextFmha": False, "usePagedContextFmha": True},
        {"contextFmha": False},
        {"gatherContextLogits": True, "maxDraftLen": 3},
        {"useFusedMlp": False, "gemmSwigluPlugin": "fp8"},
        {"kvCacheType": "disabled", "usePagedContextFmha": False},
        {"gatherAllTokenLogits": True, "maxDraftLen": 3},
        {"gatherAllTokenLogits": True, "gatherContextLogits": False},
        {"gatherAllTokenLogits": True, "gatherContextLogits": True},
        {"loraPlugin": "auto", "loraTargetModules": ["attn_q"]},
        {"loraPlugin": "auto", "loraDir": ["a"], "gemmSwigluPlugin": "fp8"},
        {"loraTargetModules": ["attn_q", "q_proj"], "loraPlugin": "auto"},
        {"speculativeDecodingMode": "eagle", "usePagedContextFmha": False},
        {"gemmPlugin": "disable"},
        {"gemmPlugin": "nvfp4"},
    ]
    profiles: list[dict[str, Any]] = [
        {},
        *(p["options"] for p in load_table("build_options")["profiles"].values()),
    ]
    cases = [
        {"facts": vars(f), "profile": profile, "asked": a}
        for f in MODELS
        for profile in profiles
        for a in (asked if not profile else [{}, {"gemmPlugin": "auto"}, {"contextFmha": False}])
    ]
    nix = evaluate(
        """map (c: value (check.options.flags (check.options.resolve "e" "trtllm-1.2.1" {
          inherit (c.facts) quantization sm architecture strategy;
          kvCache = c.facts.kv_cache;
          eagleLayers = c.facts.eagle_layers;
          tensorParallel = c.facts.tensor_parallel;
        } c.profile c.asked))) data""",
        cases,
        tmp_path,
    )

    def ours(case: dict[str, Any]) -> list[str]:
        checked = options.check_build_options(case["asked"], "trtllm-1.2.1")
        return options.format_option_flags(
            resolve_options(BuildFacts(**case["facts"]), case["profile"], checked)
        )

    for case, theirs in zip(cases, nix, strict=True):
        assert said(lambda case=case: ours(case)) == theirs, case
    assert sum(x is None for x in nix) > 50 and sum(x is not None for x in nix) > 50


def as_asked(arguments: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Limits and options of a command line, in enginix's names and types."""
    tables, limits, asked = load_table("build_options"), {}, {}
    for flag, value in parse_arguments(arguments).items():
        name = letter_case.to_camel_case(flag)
        kind = tables["options"].get(name, {}).get("type")
        if name in tables["limits"]:
            limits[name] = value
        else:
            asked[name] = {"enable": True, "disable": False}[value] if kind == "switch" else value
    return limits, asked


def refusal(row: dict[str, Any], limits: dict[str, int], asked: dict[str, Any]) -> str | None:
    """Why the command line refuses a golden request; None where it builds it."""
    said = row["checkpoint"]
    facts = BuildFacts(
        said["quant_algo"],
        said["kv_cache_quant_algo"],
        row["sm"],
        said["architecture"],
        said["tp_size"],
        said.get("num_eagle_layers"),
    )
    gpu = replace(find_target("h200"), sm=row["sm"])
    checkpoint = BuildCheckpoint(None, *(None,) * 4, None, said["tp_size"], said["pp_size"], 0, config=said)  # type: ignore[arg-type]
    try:
        check_support(facts.quantization, facts.kv_cache, facts.architecture, gpu)
        settled = resolve_options(facts, {}, options.check_build_options(asked, "trtllm-1.2.1"))
        sizes = options.resolve_limits(said["max_position_embeddings"], limits)
        request = BuildRequest(
            "e", gpu, runtimes.find_runtime("trtllm-1.2.1"), sizes, settled, frozenset(asked)
        )
        made = predict_effective_build(request, checkpoint)
    except UsageError as e:
        return str(e)
    theirs = {**row.get("build_config", {}), **row.get("plugin_config", {})}
    ours = {**made.build_config, **made.plugin_config}
    # kv_cache_type and FP8 context attention are always written out.
    assert {k: v for k, v in ours.items() if theirs.get(k) != v} == {}, row
    return None


def test_every_golden_request(tmp_path: Path) -> None:
    """Both refuse what the tool ends with an error; otherwise both predict the tool's settings."""
    rows = [(row, *as_asked(row["arguments"])) for row in golden_rows()]
    cases = [
        {
            "said": row["checkpoint"],
            "sm": row["sm"],
            "limits": limits,
            "asked": asked,
        }
        for row, limits, asked in rows
    ]
    nix = evaluate(
        """map (c: value (let
          gpu = { name = "g"; inherit (c) sm; };
          facts = {
            quantization = check.target.quantization "e" null c.said.quant_algo gpu;
            kvCache = check.target.kvCache "e" null c.said.kv_cache_quant_algo gpu;
            architecture = check.target.architecture "e" c.said.architecture;
            tensorParallel = c.said.tp_size;
            eagleLayers = c.said.num_eagle_layers or null;
            inherit (c) sm;
          };
          settled = check.options.resolve "e" "trtllm-1.2.1" facts { } c.asked;
          sizes = check.limits.resolve "e" { context = c.said.max_position_embeddings; } { } c.limits;
          made = check.limits.effective "e" sizes settled facts;
        in builtins.deepSeq [ settled facts ] made)) data""",
        cases,
        tmp_path,
    )
    taken = 0
    for (row, limits, asked), theirs in zip(rows, nix, strict=True):
        why = refusal(row, limits, asked)
        assert (why is None) == (theirs is not None), (row, why, theirs)
        if row["result"] == "error":
            assert why is not None, row
        elif why is None:
            made = {letter_case.to_snake_case(name): value for name, value in theirs.items()}
            assert made == {name: row["build_config"][name] for name in made}, row
            taken += 1
    assert taken > 300


def test_arguments_of_the_llm_class(tmp_path: Path) -> None:
    tables = load_table("llm_args")
    values = [True, 3, 0.5, "auto", {}, ["a"]]
    names = [*tables["arguments"], *tables["own"], *tables["tensorrtOnly"]["names"], "nonsense"]
    cases = [{n: v} for n in names for v in values]
    values += [None, [], [1], [[1]], -1, 2]
    nested = [
        (name, {tables["dispatch"][row["dispatch"]]["key"]: kind}, tables["classes"][class_]["fields"])
        for name, row in tables["arguments"].items()
        if "dispatch" in row
        for kind, class_ in tables["dispatch"][row["dispatch"]]["classes"].items()
    ]
    nested += [
        (name, {}, tables["classes"][row["class"]]["fields"])
        for name, row in tables["arguments"].items()
        if "class" in row
    ]
    for name, base, fields in nested:
        cases += [{name: base | {k: v}} for k in [*fields, "x"] for v in values]
    cases += [{"speculative_config": {"decoding_type": kind}} for kind in ("Lookahead", "X", 3, None)]
    cases += [{"scheduler_config": {"dynamic_batch_config": {"enable_batch_size_tuning": True}}}]
    nix = evaluate('map (c: value (check.llmapi.arguments "e" "trtllm-1.1.0" c)) data', cases, tmp_path)
    mine = [said(lambda c=c: llmapi_engine.check_llm_arguments(c, "trtllm-1.1.0")) for c in cases]
    assert nix == mine and None in mine and any(mine)
