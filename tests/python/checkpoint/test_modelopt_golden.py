"""Every export of ModelOpt's in the golden data gets one verdict, and none may be wrong in silence.

Ours converts the unified export of the same quantized model. Unquantized tensors must have the same bytes;
quantized matrices the same bytes, or the same effect: dequantized, times pre-quant scale, times norm.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compare import ABSENT
from family_golden import list_family_conversions
from golden_choice import choose_rows, mark_others_slow
from modelopt_golden import (
    FORMATS,
    FURTHER,
    ModeloptRow,
    export_unified,
    list_modelopt_rows,
    root,
    verify_unified,
)
from test_golden_families import complete_config

import golden
from enginix.checkpoint.compare_with_model import CheckpointComparison, has_prequant_scales
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.verify import algorithm_of, verify_checkpoint
from enginix.errors import EnginixError
from enginix.model.config import read_model_config
from enginix.model.family_rows import list_family_rows
from enginix.model.quantization import canonical_algorithm
from enginix.quantize.formats import find_format

INTENDED = json.loads((Path(__file__).parent / "intended_modelopt_differences.json").read_text())["rows"]
ROWS = list_modelopt_rows()
SEEN: set[tuple[str, str]] = set()  # intended differences that a sound row has
EQUAL, EFFECTIVE = "equal", "equal by effective weights"
RIGHT, REFUSED = "right where theirs is wrong", "refused"
ELSEWHERE = "refused by theirs, and held to another case"
EXPORTED = [r for r in ROWS if r.directory is not None]
# Outputs that the archive calls sound and that are not: ModelOpt cuts Phi-3's fused gate and up in halves
# across ranks, as NVIDIA's own converter does (golden data of 1.1/1.2: phi3, marked wrong there).
WRONG = ("modelopt-trt017-phi3/*-tp2",)
# Architectures without a sound output of NVIDIA's: held to transformers' logits.
BY_LOGITS = {"GraniteForCausalLM": "tests/python/reference/test_families.py"}
VOCABULARIES = ("transformer.vocab_embedding.weight", "lm_head.weight")
# What the loader makes of keys that are absent, where that changes what is computed.
LOADED = ("rotary_base", "rotary_scaling", "position_embedding_type", "norm_epsilon", "num_key_value_heads")
# The norm whose output a matrix reads: the first that its layer has.
_MLP_NORMS = ("mlp_layernorm", "pre_feedforward_layernorm", "post_layernorm", "input_layernorm")
NORMS_BEFORE = {"qkv": ("input_layernorm",), "fc": _MLP_NORMS, "gate": _MLP_NORMS}
CACHE_SCALES = re.compile(r"(k|v|kv|kv_cache_rcp)_(cache_)?scaling_factor$")
# Two quantizations of one value are a step apart; where AWQ smoothed a matrix with others, ModelOpt rounded
# it to 16 bits on the way.
STEPS, SMOOTHED_STEPS = 1 + 1e-5, 1.1
# Largest activations, of two releases of transformers that round in 16 bits in another order.
ACTIVATION = 2**-6


def is_wrong(row: ModeloptRow) -> bool:
    return row.defect or any(fnmatchcase(row.id, pattern) for pattern in WRONG)


def convert_row(row: ModeloptRow, out: Path) -> None:
    dtype = json.loads((row.output / "config.json").read_text())["dtype"]
    options = ConvertOptions(
        dtype=dtype,
        mapping=CheckpointMapping(row.tensor_parallel),
        parallel_embedding=True,
        kind="tensorrt",
        nvfp4_form="modelopt",
    )
    convert_model(row.model, out, options)


def to_wide(array: Any) -> Any:
    return array.astype(np.float32)


def find_norm(linear: str, file: RankFile) -> str | None:
    layer, leaf = linear.rsplit(".", 2)[0], linear.rsplit(".", 1)[-1]
    names = (f"{layer}.{name}" for name in NORMS_BEFORE.get(leaf, ()))
    return next((name for name in names if f"{name}.weight" in file.tensors), None)


def compute_effect(file: RankFile, linear: LinearModule, algorithm: str) -> tuple[Any, Any]:
    """Return what a matrix does to the input of its norm, and the step of its numbers there."""
    values, step = format_of(algorithm, "modelopt").dequantize(file.leaves(linear.name), linear)
    norm = find_norm(linear.name, file)
    if norm is None or not has_prequant_scales(algorithm):
        return values, step
    weight = to_wide(file[f"{norm}.weight"])
    return values * weight, step * np.abs(weight)


class ExportComparison:
    """Compares the tensors of one row with ours.

    Attributes:
        differences: what is neither equal nor explained.
        is_effective: whether a matrix is equal by its effect alone.
    """

    def __init__(self, row: ModeloptRow, out: Path) -> None:
        self.row, self.out = row, out
        self.differences: list[str] = []
        self.is_effective = False
        self.config = CheckpointConfig.read(out)
        self._compare_vocabularies()
        for rank in range(row.tensor_parallel):
            self._compare_rank(rank)

    def _compare_vocabularies(self) -> None:
        """Compare embedding and head over all ranks; ModelOpt's AWQ pads the vocabulary."""
        sizes = range(self.row.tensor_parallel)
        ours, theirs = (
            [RankFile(d / f"rank{r}.safetensors") for r in sizes] for d in (self.out, self.row.output)
        )
        for name in VOCABULARIES:
            # Without a head of its own, theirs shares the embedding.
            stored = name if name in theirs[0].tensors else VOCABULARIES[0]
            mine = np.concatenate([f[name] for f in ours])
            other = np.concatenate([f[stored] for f in theirs])
            whole = self.config.vocab_size
            if mine[:whole].tobytes() != other[:whole].tobytes() or mine.dtype != other.dtype:
                self.differences.append(f"{name}: differs")
            if to_wide(mine[whole:]).any() or to_wide(other[whole:]).any():
                self.differences.append(f"{name}: padding is not zero")

    def _compare_rank(self, rank: int) -> None:
        name = f"rank{rank}.safetensors"
        ours, theirs = RankFile(self.out / name), RankFile(self.row.output / name)
        compared = self._compare_caches(ours, theirs) | set(VOCABULARIES)
        for module in CheckpointLayout(self.config).rank(rank):
            if isinstance(module, LinearModule) and (algorithm := algorithm_of(module, self.config)):
                compared |= self._compare_matrix(module, algorithm, ours, theirs)
                if module.zero_bias:  # theirs is zeroed by the loader (preprocess_weights)
                    compared.add(f"{module.name}.bias")
            elif isinstance(module, LinearModule) and module.zero_bias:
                compared.add(f"{module.name}.bias")
        for tensor in sorted((ours.tensors.keys() | theirs.tensors.keys()) - compared):
            if tensor not in ours.tensors or tensor not in theirs.tensors:
                self.differences.append(f"{tensor}: only one has it")
            elif ours.tensors[tensor].shape != theirs.tensors[tensor].shape:
                self.differences.append(f"{tensor}: of another shape")
            elif ours[tensor].dtype != theirs[tensor].dtype or (
                ours[tensor].tobytes() != theirs[tensor].tobytes()
            ):
                self.differences.append(f"{tensor}: differs")

    def _compare_caches(self, ours: RankFile, theirs: RankFile) -> set[str]:
        """Compare the scales of the KV cache.

        ModelOpt writes k's and v's, of which the loader takes the largest, and in this export none below 1;
        NVIDIA's own converter writes the model's (golden data of 1.1/1.2: llama-fp8-kvfp8).
        """
        names = {n for n in ours.tensors.keys() | theirs.tensors.keys() if CACHE_SCALES.search(n)}
        for block in sorted({n.rsplit(".", 1)[0] for n in names}):
            pair = [float(theirs[f"{block}.{x}_cache_scaling_factor"][0]) for x in "kv"]
            scale = float(ours[f"{block}.kv_cache_scaling_factor"][0])
            if abs(max(scale, 1.0) - max(pair)) > ACTIVATION * max(pair):
                self.differences.append(f"{block}: KV cache scale {scale}, theirs {max(pair)}")
        return names

    def _compare_matrix(
        self, linear: LinearModule, algorithm: str, ours: RankFile, theirs: RankFile
    ) -> set[str]:
        names = {f"{linear.name}.{leaf}" for leaf in ours.leaves(linear.name)} - {f"{linear.name}.bias"}
        absent = [n for n in names if n not in theirs.tensors]
        norm = find_norm(linear.name, ours) if has_prequant_scales(algorithm) else None
        of_norm = {f"{norm}.{leaf}" for leaf in ("weight", "bias")} & set(ours.tensors)
        if absent:
            self.differences += [f"{n}: theirs has none" for n in absent]
            return names
        activation = f"{linear.name}.activation_scaling_factor"
        prequant = f"{linear.name}.prequant_scaling_factor"
        is_smoothed_alike = prequant not in names or ours[prequant].tobytes() == theirs[prequant].tobytes()
        if activation in names and is_smoothed_alike:
            pair = (float(ours[activation].reshape(-1)[0]), float(theirs[activation].reshape(-1)[0]))
            if abs(pair[0] - pair[1]) > ACTIVATION * pair[0]:
                self.differences.append(f"{activation}: {pair[0]}, theirs {pair[1]}")
        rest = (names | of_norm) - {activation}
        if all(ours[n].tobytes() == theirs[n].tobytes() for n in rest):
            return names | of_norm
        self.is_effective = True
        mine, step = compute_effect(ours, linear, algorithm)
        other, other_step = compute_effect(theirs, linear, algorithm)
        apart = np.abs(mine - other) / np.maximum(step, other_step)
        if apart.max() > (SMOOTHED_STEPS if norm else STEPS):
            self.differences.append(f"{linear.name}: {apart.max():.3g} steps apart")
        if f"{norm}.bias" in of_norm:  # scaled as the weight is
            pairs = [[to_wide(f[f"{norm}.{leaf}"]) for leaf in ("weight", "bias")] for f in (ours, theirs)]
            crossed = (pairs[0][1] * pairs[1][0], pairs[1][1] * pairs[0][0])
            if not np.allclose(*crossed, rtol=2**-6, atol=1e-6):
                self.differences.append(f"{norm}.bias: differs in effect")
        return names | of_norm


def list_config_differences(row: ModeloptRow, out: Path) -> list[str]:
    """Return the keys that differ, as written and as the loader completes them."""
    theirs, ours = (complete_config(json.loads((d / "config.json").read_text())) for d in (row.output, out))
    found = [
        f"{key}: {a!r} became {b!r}"
        for key, (a, b) in list_loaded_differences(row, out).items()
        if not find_intended(row, key)
    ]
    for key, value in theirs.items():
        mine = ours.get(key, ABSENT)
        if key.startswith("producer") or value == mine or find_intended(row, key):
            continue
        found.append(f"{key}: {value!r} became {mine!r}")
    return found


def list_loaded_differences(row: ModeloptRow, out: Path) -> dict[str, tuple[Any, Any]]:
    theirs, ours = CheckpointConfig.read(row.output), CheckpointConfig.read(out)
    pairs = {key: (getattr(theirs, key), getattr(ours, key)) for key in LOADED}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def find_intended(row: ModeloptRow, key: str) -> dict[str, str] | None:
    rows = (r for r in INTENDED if fnmatchcase(key, r["key"]) and fnmatchcase(row.id, r["only"]))
    if (intended := next(rows, None)) is not None and not is_wrong(row):
        SEEN.add((intended["key"], intended["only"]))
    return intended


@cache
def list_held_cases() -> dict[tuple[str, str], str]:
    """Return (architecture, format) → a case by which ours is held where ModelOpt's setting refuses."""
    held = {(r.architecture, r.format): r.case for r in EXPORTED if not is_wrong(r) and not r.no_unified}
    for case in list_family_conversions():
        if case.error is None and case.defect is None:
            held.setdefault((read_architecture(case.model), "none"), case.case)
    for conversion in golden.conversions():
        if conversion.ok and not conversion.defect and conversion.format == "none":
            held.setdefault((conversion.architecture, "none"), conversion.case)
    held |= {(name, "none"): test for name, test in BY_LOGITS.items()}
    return held | {(read_architecture(root() / case / "hf"), name): case for case, name in FURTHER}


def read_architecture(model: Path) -> str:
    return str(json.loads((model / "config.json").read_text())["architectures"][0])


def judge_export(row: ModeloptRow, out: Path) -> tuple[str, str]:
    """Return the verdict on a row that ModelOpt exported, and what it rests on.

    Raises:
        AssertionError: ours is wrong, or differs without a reason.
    """
    if row.no_unified is not None:
        return REFUSED, f"no unified export: {row.no_unified}"
    try:
        convert_row(row, out)
    except EnginixError as e:
        assert e.fix
        return REFUSED, e.what
    assert verify_checkpoint(out).findings == []
    assert list(CheckpointComparison(out, row.original).findings()) == []
    comparison = ExportComparison(row, out)
    config = list_config_differences(row, out)
    if is_wrong(row):
        assert comparison.differences or config
        # A defect of config.json alone leaves the tensors right.
        if not any(fnmatchcase(row.id, pattern) for pattern in WRONG):
            assert comparison.differences == []
        return RIGHT, "; ".join([*config, *comparison.differences][:2])
    assert (comparison.differences, config) == ([], [])
    return (EFFECTIVE if comparison.is_effective else EQUAL), row.model.name


def judge_refusal(row: ModeloptRow, directory: Path) -> tuple[str, str]:
    """Return the verdict on a row that ModelOpt refused: ours refuses, or is held to another case."""
    held = list_held_cases().get((row.architecture, row.format))
    if held is not None:
        return ELSEWHERE, held
    raw = json.loads((row.original / "config.json").read_text())
    if row.format != "none":
        algorithm = find_format(FORMATS[row.format][0]).algorithm
        raw["quantization_config"] = {"quant_method": "modelopt", "quant_algo": algorithm}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    try:
        read_model_config(directory)
    except EnginixError as e:
        assert e.fix
        return REFUSED, e.what
    experts = raw.get("num_local_experts") or raw.get("num_experts")
    assert experts and not find_format(FORMATS[row.format][0]).experts, f"{row.id} is not covered"
    return REFUSED, f"{row.format} is for dense models"


@cache
def judge_row(row: ModeloptRow) -> tuple[str, str]:
    """Return the verdict on a row, once a process."""
    with tempfile.TemporaryDirectory() as directory:
        judge = judge_refusal if row.directory is None else judge_export
        return judge(row, Path(directory) / "out")


def list_features(row: ModeloptRow) -> list[tuple[Any, ...]]:
    """Return what a choice of rows must have: each architecture in each format, and each number of ranks."""
    return [(row.architecture, row.format), (row.tensor_parallel,)]


# Sound exports first, and of these the ones with most ranks.
CHOSEN = choose_rows(
    sorted(
        ROWS,
        key=lambda r: (
            r.directory is None,
            is_wrong(r),
            r.no_unified is not None,
            -(r.tensor_parallel or 0),
        ),
    ),
    list_features,
)


@pytest.mark.parametrize("row", mark_others_slow(ROWS, CHOSEN))
def test_every_row_has_a_verdict(row: ModeloptRow) -> None:
    assert all(judge_row(row))


def test_verdicts_of_the_choice() -> None:
    """As of all rows, below."""
    assert Counter(judge_row(row)[0] for row in CHOSEN) == {
        EQUAL: 33,
        EFFECTIVE: 31,
        RIGHT: 2,
        REFUSED: 36,
        ELSEWHERE: 9,
    }


@pytest.mark.slow
def test_verdicts() -> None:
    """A row more that is refused, or equal no longer, changes the counts and must be explained."""
    assert Counter(judge_row(row)[0] for row in ROWS) == {
        EQUAL: 100,
        EFFECTIVE: 87,
        RIGHT: 40,
        REFUSED: 78,
        ELSEWHERE: 38,
    }
    refused = {row.case for row in EXPORTED if judge_row(row)[0] == REFUSED}
    assert refused == {
        "modelopt-recurrentgemma",
        "modelopt-trt017-falcon40b",
        "modelopt-trt017-falcon40b-awq",
        "modelopt-trt017-falcon7b",
        "modelopt-trt017-mixtral-awq",
        "modelopt-trt017-phi2-gqa",
    }


@pytest.mark.slow
def test_every_intended_difference_is_seen() -> None:
    for row in EXPORTED:
        judge_row(row)
    assert {(row["key"], row["only"]) for row in INTENDED} == SEEN


@pytest.mark.parametrize(("case", "name"), FURTHER)
def test_exports_that_only_the_model_judges(case: str, name: str, tmp_path: Path) -> None:
    model = root() / case / f"unified-{name}"
    convert_model(model, tmp_path / "out", ConvertOptions(kind="tensorrt"))
    assert verify_checkpoint(tmp_path / "out").findings == []
    for judge in (model, root() / case / "hf"):
        assert list(CheckpointComparison(tmp_path / "out", judge).findings()) == []


@pytest.mark.parametrize("name", sorted(n for n, row in list_family_rows().items() if "formats" in row))
def test_formats_are_those_of_the_golden_data(name: str) -> None:
    """A format of a row is one that some export holds it to; the other name of a class has the same row."""
    held = {
        canonical_algorithm(find_format(FORMATS[r.format][0]).algorithm)
        for r in CHOSEN
        if r.directory is not None
        and r.format != "none"
        and judge_row(r)[0] in (EQUAL, EFFECTIVE)
        and has_layout_of(r, name)
    }
    held |= {
        find_format(FORMATS[f][0]).algorithm
        for case, f in FURTHER
        if read_architecture(root() / case / "hf") == name
    }
    assert set(list_family_rows()[name]["formats"]) == held


def has_layout_of(row: ModeloptRow, name: str) -> bool:
    rows = list_family_rows()
    return row.architecture in rows and rows[row.architecture]["layout"] is rows[name]["layout"]


@pytest.mark.parametrize("leaf", ["weight", "bias"])
@pytest.mark.parametrize("case", ["modelopt-trt017-nemotron-awq", "modelopt-trt017-gptj-awq"])
def test_a_norm_that_was_not_folded_is_found(case: str, leaf: str, tmp_path: Path) -> None:
    convert_model(root() / case / "unified-int4awq", tmp_path / "out", ConvertOptions())
    path = tmp_path / "out/rank0.safetensors"
    info = RankFile(path).tensors[f"transformer.layers.0.input_layernorm.{leaf}"]
    data = bytearray(path.read_bytes())
    values = np.frombuffer(data[info.begin : info.end], np.uint16).copy()
    values[3] += 0x80  # twice as large in bfloat16, a good eighth more in float16
    data[info.begin : info.end] = values.tobytes()
    path.write_bytes(data)
    assert list(CheckpointComparison(tmp_path / "out", root() / case / "hf").findings())


def test_part_of_a_turned_model_is_refused(tmp_path: Path) -> None:
    """ModelOpt stores GPT-2's matrices turned around; one that it left alone may be either way."""
    source = root() / "modelopt-trt017-gpt2/unified-fp8"
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("config.json", "hf_quant_config.json"):
        raw = json.loads((source / name).read_text())
        entry = raw.get("quantization_config", raw.get("quantization"))
        entry["ignore" if "ignore" in entry else "exclude_modules"].append("transformer.h.0.attn.c_proj")
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(raw))
    with pytest.raises(EnginixError, match=r"has scales, but|nothing tells which way"):
        convert_model(tmp_path, tmp_path / "out", ConvertOptions())


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted({r.case for r in EXPORTED if r.format == "fp8" and not r.no_unified}))
def test_enginix_quantize_writes_what_is_converted(case: str, tmp_path: Path) -> None:
    """The archive's exports, made anew: quantized, exported, checked and converted."""
    original = root() / case / "hf"
    if "formats" not in list_family_rows().get(read_architecture(original), {}):
        pytest.skip("no family row")
    export_unified(root() / case, "fp8", tmp_path / "unified")
    verify_unified(root() / case, "fp8", tmp_path / "unified")
    convert_model(tmp_path / "unified", tmp_path / "out", ConvertOptions(kind="tensorrt"))
    assert list(CheckpointComparison(tmp_path / "out", original).findings()) == []


assert ml_dtypes  # registers the NumPy dtypes that the arrays have
