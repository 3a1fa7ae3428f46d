"""Answers of nvidia-smi and NVML, garbage included; engines compared with machines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.compatibility.check import Mismatch, compare_with_machine, require_runnable
from enginix.errors import EnginixError, MachineError, ManifestError, UsageError
from enginix.machine import target
from enginix.machine.driver import Driver
from enginix.machine.gpu_table import find_gpu, list_gpu_names
from enginix.machine.target import Machine, MachineGpu, is_version_at_least
from enginix.manifest import Manifest

# A stand-in for NVML: the calls that enginix makes, answering for two GPUs.
NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned a, b; } process;
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.159.04", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory *m) {
  m->total = 150ULL << 30; m->free = 149ULL << 30; return MEMORY; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 9; *b = 0; return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H200", n); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { strncpy(s, "GPU-standin", n); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process *p) {
  *n = 2; p[0].pid = 11; p[0].used = 5; p[1].pid = 12; p[1].used = ~0ULL; return 0; }
"""


@pytest.fixture
def nvml(tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")

    def make(init: int = 0, count: int = 2, memory: int = 0) -> Driver:
        root = tmp_path / f"driver-{init}-{count}-{memory}"
        (root / "lib").mkdir(parents=True)
        source = root / "nvml.c"
        source.write_text(NVML)
        line = [
            "gcc",
            "-shared",
            "-fPIC",
            f"-DINIT={init}",
            f"-DCOUNT={count}",
            f"-DMEMORY={memory}",
            "-o",
            str(root / "lib/libnvidia-ml.so.1"),
        ]
        subprocess.run([*line, str(source)], check=True)
        return Driver(root)

    return make


def test_nvml(nvml):
    found = target.probe_machine(nvml())
    assert (found.source, found.driver, found.cuda, len(found.gpus)) == ("nvml", "580.159.04", "13.0", 2)
    gpu = found.gpus[1]
    assert (gpu.name, gpu.sm, gpu.total, gpu.free) == ("NVIDIA H200", 90, 150 << 30, 149 << 30)
    assert [(p.pid, p.memory) for p in gpu.processes] == [(11, 5), (12, None)]


def the_machines_memory() -> int:
    (line,) = (row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemTotal"))
    return int(line.split()[1]) * 1024


def test_nvml_of_a_gpu_that_shares_the_machines_memory(nvml):
    gpu = target.probe_machine(nvml(memory=3)).gpus[0]
    assert (gpu.total, gpu.sm) == (the_machines_memory(), 90)
    assert 0 < gpu.free < gpu.total


@pytest.mark.parametrize("said", ["[N/A]", "Not Supported"])
def test_nvidia_smi_of_a_gpu_that_shares_the_machines_memory(tmp_path, said):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    rows = f"0, NVIDIA GB10, GPU-standin, 12.1, {said}, {said}, 580.95"
    program.write_text(f'#!/bin/sh\ncase $1 in *compute-apps*) ;; *) echo "{rows}" ;; esac\n')
    program.chmod(0o755)
    gpu = target.probe_machine(Driver(tmp_path)).gpus[0]
    assert (gpu.sm, gpu.total) == (121, the_machines_memory())


@pytest.mark.parametrize("sm", ["8.7", "[N/A]"])
def test_nvidia_smi_of_jetson(tmp_path, sm):
    """ "Orin (nvgpu)", and "[N/A]" for what it does not know: older systems do not know the SM either."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    rows = f"0, Orin (nvgpu), [N/A], {sm}, [N/A], [N/A], 540.4.0"
    program.write_text(
        f'#!/bin/sh\ncase $1 in *compute-apps*) echo "[N/A], [N/A], [N/A]" ;; *) echo "{rows}" ;; esac\n'
    )
    program.chmod(0o755)
    if sm == "8.7":
        gpu = target.probe_machine(Driver(tmp_path)).gpus[0]
        assert (gpu.sm, gpu.total, gpu.processes) == (87, the_machines_memory(), ())
        return
    with pytest.raises(
        MachineError, match=r"the compute capability of 'Orin \(nvgpu\)' is '\[N/A\]'"
    ) as refusal:
        target.probe_machine(Driver(tmp_path))
    assert "--target" in (refusal.value.fix or "")


def test_nvml_without_a_gpu(nvml):
    with pytest.raises(MachineError, match="no GPU is visible"):
        target.probe_machine(nvml(count=0))


def test_nvidia_smi_where_nvml_does_not_start(nvml, driver):
    broken = nvml(init=9)
    assert broken.root is not None
    (broken.root / "bin").mkdir()
    shutil.copy(driver() / "bin" / "nvidia-smi", broken.root / "bin")
    assert target.probe_machine(broken).source == "nvidia-smi"


def test_a_library_that_is_none(driver):
    root = driver()
    (root / "lib" / "libnvidia-ml.so.1").write_text("not an ELF file")
    assert target.probe_machine(Driver(root)).source == "nvidia-smi"


def test_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="no NVIDIA driver"):
        target.probe_machine(Driver(tmp_path))


@settings(max_examples=40, deadline=None)
@given(answer=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_any_answer_of_nvidia_smi_is_read_or_refused(tmp_path, answer):
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "answer").write_text(answer)
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    program.chmod(0o755)
    try:
        target.probe_machine(Driver(tmp_path))
    except EnginixError as e:
        assert str(e)


def test_products() -> None:
    named = {
        "h200": "NVIDIA H200",
        "h100": "NVIDIA H100 80GB HBM3",
        "b200": "NVIDIA B200",
        "rtx-pro-6000": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "rtx-4090": "NVIDIA GeForce RTX 4090",
        "l40s": "NVIDIA L40S",
        "a100-80gb": "NVIDIA A100-SXM4-80GB",
        "rtx-4070": "NVIDIA GeForce RTX 4070",
        "rtx-4070-ti": "NVIDIA GeForce RTX 4070 Ti",
        "rtx-4070-ti-super": "NVIDIA GeForce RTX 4070 Ti SUPER",
        "rtx-4070-laptop": "NVIDIA GeForce RTX 4070 Laptop GPU",
        "rtx-4000-ada": "NVIDIA RTX 4000 Ada Generation",
        "rtx-4000-sff-ada": "NVIDIA RTX 4000 SFF Ada Generation",
        "h100-nvl": "NVIDIA H100 NVL",
    }
    for name, reported in named.items():
        assert target.find_target(name).is_product(reported), name
        others = [n for n in named if n != name]
        assert not any(target.find_target(n).is_product(reported) for n in others), name
    with pytest.raises(UsageError, match="did you mean h200"):
        target.find_target("h2000")


def test_parts_of_one_name_and_two_sizes_of_memory() -> None:
    def named(reported: str, sm: int, memory: int) -> str:
        return target.name_target(target.MachineGpu(0, reported, "GPU-0", sm, memory << 20, memory << 20))

    assert named("NVIDIA GeForce RTX 4060 Ti", 89, 16380) == "rtx-4060-ti-16gb"
    assert named("NVIDIA GeForce RTX 4060 Ti", 89, 8188) == "rtx-4060-ti-8gb"
    assert named("NVIDIA H100 PCIe", 90, 81559) == "h100"
    assert named("NVIDIA GeForce RTX 4090", 89, 24564) == "rtx-4090"
    # The table lacks its memory: the name says it, and is a target.
    name = named("NVIDIA T1000 8GB", 75, 8192)
    assert name == "t1000-8gb" and target.find_target(name).is_product("NVIDIA T1000 8GB", 8 << 30)


# As nvidia-smi writes them: name, SM, MiB, and the target's name.
REPORTED = [
    ("NVIDIA GeForce RTX 5090 D v2", 120, 24463, "rtx-5090-d-v2"),
    ("NVIDIA GB300-WS", 103, 258048, "gb300-270gb"),
    ("NVIDIA A10-12Q", 86, 12288, "a10-12gb"),
    ("GRID A100-10C", 80, 10240, "a100-10gb"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 80, 4864, "a100-5gb"),
    ("NVIDIA H20-3e", 90, 143771, "h20-3e-150gb"),
    ("NVIDIA RTX PRO 5000 72GB Blackwell", 120, 73415, "rtx-pro-5000-76gb"),
    ("NVIDIA GeForce RTX 2060", 75, 12288, "rtx-2060-12gb"),
    ("NVIDIA GeForce RTX 2060", 75, 6144, "rtx-2060"),
    ("NVIDIA GeForce RTX 4090", 89, 49140, "rtx-4090-51gb"),
    ("NVIDIA GH200 480GB", 90, 97871, "gh200"),
    ("NVIDIA GH200 144G HBM3e", 90, 146831, "gh200-153gb"),
    ("NVIDIA GB10", 121, 122502, "gb10"),
    ("NVIDIA GB200", 100, 189471, "gb200"),
    ("NVIDIA B300 SXM6 AC", 103, 275040, "b300"),
    ("NVIDIA RTX A5500 Laptop GPU", 86, 16384, "rtx-a5500-laptop-17gb"),
    ("NVIDIA RTX 4000 SFF Ada Generation", 89, 20475, "rtx-4000-sff-ada"),
    ("NVIDIA H200", 90, 143771, "h200"),
    ("Tesla T4", 75, 15360, "t4"),
    ("Orin (nvgpu)", 87, 62841, "sm87-65gb"),
    ("NVIDIA Thor", 110, 125772, "jetson-t5000"),
    ("NVIDIA Thor", 110, 62841, "sm110-65gb"),
    ("NVIDIA H100XM-80C", 90, 81920, "h100"),
    ("GRID A100D-20C", 80, 20480, "sm80-21gb"),
    ("NVIDIA Graphics Device", 120, 16000, "sm120-16gb"),
]


@pytest.mark.parametrize(("reported", "sm", "mib", "name"), REPORTED)
def test_a_gpu_is_named_by_its_own_memory(reported: str, sm: int, mib: int, name: str) -> None:
    assert target.name_target(MachineGpu(0, reported, "GPU-0", sm, mib << 20, mib << 20)) == name
    assert find_gpu(name).sm == sm


@given(row=st.sampled_from(list_gpu_names()), mib=st.integers(1 << 10, 1 << 19))
def test_a_name_never_promises_memory_that_the_machine_lacks(row: str, mib: int) -> None:
    """Whatever a driver reports beside a product's name: the target has no more than a tenth beyond it."""
    known = find_gpu(row)
    gpu = MachineGpu(0, known.product, "GPU-0", known.sm, mib << 20, mib << 20)
    found = find_gpu(target.name_target(gpu))
    assert found.sm == gpu.sm
    assert found.memory <= gpu.total * (1.2 if found.unified else 1.07)
    assert found.memory > gpu.total * 0.9 - 10**9


def test_nvidia_smi_without_devices(tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    for status in (0, 6):
        program.write_text(f"#!/bin/sh\necho 'No devices were found'; exit {status}\n")
        program.chmod(0o755)
        with pytest.raises(MachineError, match="no GPU is visible"):
            target.probe_machine(Driver(tmp_path))
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    with pytest.raises(MachineError, match="exit status 9: NVIDIA-SMI has failed"):
        target.probe_machine(Driver(tmp_path))


@pytest.mark.parametrize(
    ("found", "least", "enough"),
    [
        ("590.44.01", "590.44.01", True),
        ("590.9", "590.44.01", False),
        ("1000", "590.44.01", True),
        ("5x", "590", False),
        ("", "1", False),
    ],
)  # fmt: skip
def test_versions(found, least, enough):
    assert is_version_at_least(found, least) is enough


def engine(**target_changes):
    at = {"name": "h200", "sm": 90, "gpu": "NVIDIA H200", "memory": 150 << 30, "count": 1} | target_changes
    runtime = {"id": "trtllm-1.2.1", "driverFloor": "590.44.01", "driver": "595.1"}
    return Manifest("engine", "e", "tensorrt", target=at, runtime=runtime)


def machine(
    name: str = "NVIDIA H200", sm: int = 90, driver: str = "595.1", count: int = 1, total: int = 150 << 30
) -> Machine:
    return Machine(
        driver, None, tuple(MachineGpu(i, name, f"u{i}", sm, total, total) for i in range(count)), "nvml"
    )


def test_an_engine_at_home() -> None:
    assert compare_with_machine(engine(), machine()).differences == ()


@pytest.mark.parametrize(
    ("made", "here", "field", "fatal"),
    [
        (engine(), machine("NVIDIA B200", 100), "sm", True),
        (engine(count=2), machine(), "count", True),
        (engine(), machine(driver="570.1"), "driver", True),
        (engine(), machine("NVIDIA H100 80GB HBM3", 90), "gpu", False),
        (engine(), machine(total=80 << 30), "memory", False),
        (engine(), None, "gpu", True),
    ],
)
def test_each_field_that_differs_is_named(made, here, field, fatal):
    found = compare_with_machine(made, here).differences
    assert [(d.field, d.fatal) for d in found] == [(field, fatal)] and found[0].do


def test_another_runtime(tmp_path):
    engine().write(tmp_path)
    with pytest.raises(Mismatch, match=r"runtime: built for trtllm-1\.2\.1, here trtllm-1\.1\.0"):
        require_runnable(tmp_path, machine(), "trtllm-1.1.0")


def test_a_reference_engine_runs_everywhere(tmp_path):
    Manifest("engine", "r", "reference", runtime={"id": "reference"}).write(tmp_path)
    assert require_runnable(tmp_path, None).runs


def test_an_accepted_driver_stays_accepted() -> None:
    made = engine()
    made.runtime["driver"] = "570.1"
    found = compare_with_machine(made, machine(driver="570.1")).differences
    assert [(d.field, d.fatal) for d in found] == [("driver", False)]


def test_a_lying_manifest_is_refused_not_a_crash(tmp_path):
    for at in ({"sm": "ninety"}, {"sm": None, "count": 1}):
        assert not compare_with_machine(engine(**at), machine()).runs
    for kind in (None, "tensort"):
        with pytest.raises(ManifestError, match="kind is"):
            compare_with_machine(Manifest("engine", "e", kind), machine())
    for at in ({"count": "two"}, {"count": [1]}, {"memory": "much"}, {"memory": True}):
        with pytest.raises(ManifestError, match="build this engine again"):
            compare_with_machine(engine(**at), machine())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
)


@given(
    at=st.dictionaries(st.sampled_from(["name", "sm", "gpu", "memory", "count"]), JSON),
    wants=st.dictionaries(st.sampled_from(["id", "driver", "driverFloor"]), JSON),
)
def test_any_manifest_is_compared_or_refused(at, wants):
    try:
        compare_with_machine(Manifest("engine", "e", "tensorrt", target=at, runtime=wants), machine())
    except ManifestError as e:
        assert "again" in str(e)


def test_gpu_rows_have_sources() -> None:
    from enginix.tables import load_table

    assert all(
        row.get("source") and isinstance(row["sm"], int) for row in load_table("gpus")["gpus"].values()
    )
