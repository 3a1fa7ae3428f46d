"""Names of GPUs, and what runs on them: evaluation (nix/check) and the command line agree."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import UsageError
from enginix.kinds.llmapi import llmapi_engine
from enginix.kinds.registry import KIND_NAMES
from enginix.machine.gpu_table import find_gpu
from enginix.machine.kind_support import explain_unsupported_gpu, list_running_kinds
from enginix.machine.target import find_target
from enginix.quantize.formats import resolve_format
from enginix.runtime import table as runtimes
from enginix.tables import load_table
from nix_evaluation import ROOT, evaluate, needs_nix, said

pytestmark = needs_nix

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


# An example is an evaluation of all its names.
FEWEST_NAMES = 100 if os.environ.get("ENGINIX_SLOW") else 20


@settings(max_examples=4 if os.environ.get("ENGINIX_SLOW") else 2, deadline=None)
@given(
    names=st.lists(
        st.builds(
            str.format,
            st.sampled_from(DECORATIONS),
            st.sampled_from([*load_table("gpus")["gpus"], *GPU_NAMES])
            | st.from_regex("sm[0-9]{2,3}", fullmatch=True),
        ),
        min_size=FEWEST_NAMES,
        max_size=2 * FEWEST_NAMES,
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
