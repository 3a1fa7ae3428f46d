"""Golden data of quantized families: what ModelOpt 0.47 exported in TensorRT-LLM's form, row by row.

tests/golden/modelopt.tar.xz holds every ``modelopt-*`` case of the complete archive, and beside it the
unified exports that it lacks: made by ModelOpt 0.47 with transformers 5 of the same models and calibration
tokens, by the code of ``enginix quantize``. It is made again from the unpacked archive, with ModelOpt:

  python tests/python/checkpoint/modelopt_golden.py GOLDEN_FAMILIES tests/golden/modelopt.tar.xz
"""

from __future__ import annotations

import copy
import json
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3] / "python")]

from golden import add_file, unpack_archive

# Format in the archive → format and KV cache of `enginix quantize`.
FORMATS = {
    "fp8": ("fp8", None),
    "fp8kv": ("fp8", "fp8"),
    "int8sq": ("int8_sq", None),
    "int4awq": ("int4_awq", None),
    "w4a8awq": ("w4a8_awq", None),
    "nvfp4": ("nvfp4", None),
}
# Unified exports beside those of rows: of families whose AWQ ModelOpt's TensorRT-LLM export refuses.
FURTHER = [("modelopt-trt017-gemma2", "int4awq"), ("modelopt-trt017-phi3", "int4awq")]
AWQ_GROUP = 32  # of the archive, so that tiny models can be cut


@dataclass(frozen=True)
class ModeloptRow:
    """One export of ModelOpt's.

    Attributes:
        format: ``none`` or a key of FORMATS.
        directory: of the output in the case; None where ModelOpt refused.
        defect: whether the output is marked wrong.
        error: what ModelOpt says where it refuses.
        no_unified: why there is no unified export; None where there is one, or none is needed.
    """

    case: str
    format: str
    tensor_parallel: int
    architecture: str
    directory: str | None
    defect: bool
    error: str | None
    no_unified: str | None

    @property
    def id(self) -> str:
        return f"{self.case}/{self.format}-tp{self.tensor_parallel}"

    @property
    def output(self) -> Path:
        return root() / self.case / str(self.directory)

    @property
    def original(self) -> Path:
        return root() / self.case / "hf"

    @property
    def model(self) -> Path:
        """Return the model that ours converts: the original, or its unified export in the row's format."""
        return self.original if self.format == "none" else root() / self.case / f"unified-{self.format}"


def root() -> Path:
    """Return the directory of the unpacked archive."""
    return unpack_archive("modelopt")


def list_modelopt_rows() -> list[ModeloptRow]:
    return [ModeloptRow(**row) for row in json.loads((root() / "rows.json").read_text())]


def export_unified(case: Path, format_name: str, out: Path) -> None:
    """Quantize a case's model as the archive's exports were, and write ModelOpt's unified checkpoint.

    Raises:
        EnginixError: ModelOpt fails.
    """
    import modelopt.torch.quantization as mtq
    import torch

    from enginix.quantize import ptq
    from enginix.quantize.formats import resolve_format

    name, kv_cache = FORMATS[format_name]
    choice = resolve_format(name, kv_cache=kv_cache)
    recipe = choice.formats[0].recipe
    original_recipe = getattr(mtq, recipe)
    network = ptq.load_model(case / "hf", "cpu")
    seed = json.loads((case / "case.json").read_text())["input"]["seed"] + 1
    tokens = torch.Generator().manual_seed(seed)
    batches = [torch.randint(0, network.config.vocab_size, (2, 24), generator=tokens) for _ in range(3)]
    try:
        setattr(mtq, recipe, _shrink_groups(copy.deepcopy(original_recipe)))
        network = ptq.insert_quantizers(network, choice, batches)
    finally:
        setattr(mtq, recipe, original_recipe)
    ptq.export_checkpoint(network, out)


def verify_unified(case: Path, format_name: str, out: Path) -> None:
    """Check an export as ``enginix quantize`` does.

    Raises:
        ModelError: the export is not what it says.
    """
    from enginix.quantize import source, verify
    from enginix.quantize.formats import resolve_format

    name, kv_cache = FORMATS[format_name]
    verify.verify_export(out, resolve_format(name, kv_cache=kv_cache), source.read_source_model(case / "hf"))


def _shrink_groups(recipe: Any) -> Any:
    for value in recipe.values() if isinstance(recipe, dict) else recipe if isinstance(recipe, list) else ():
        if isinstance(value, dict) and value.get("block_sizes", {}) and value["block_sizes"].get(-1) == 128:
            value["block_sizes"][-1] = AWQ_GROUP
        _shrink_groups(value)
    return recipe


def write_archive(source: Path, target: Path) -> None:
    """Write the archive from the complete one, unpacked."""
    index = [r for r in json.loads((source / "index.json").read_text()) if r["tool"] == "modelopt"]
    rows = []
    with tarfile.open(target, "w:xz", preset=9) as tar, tempfile.TemporaryDirectory() as work:
        unified: dict[tuple[str, str], str | None] = {}
        for row in sorted(index, key=lambda r: (r["case"], r["format"], r["tp"])):
            key, case = (row["case"], row["format"]), source / row["case"]
            if row["format"] != "none" and key not in unified and row["result"] == "ok":
                unified[key] = _add_unified(tar, case, row["format"], Path(work))
            rows.append(
                {
                    "case": row["case"],
                    "format": row["format"],
                    "tensor_parallel": row["tp"],
                    "architecture": json.loads((case / "hf/config.json").read_text())["architectures"][0],
                    "directory": row["directory"] if row["result"] == "ok" else None,
                    "defect": bool(row["known_defect"]),
                    "error": _find_error(case, row),
                    "no_unified": unified.get(key),
                }
            )
        for case_name, format_name in FURTHER:
            refusal = _add_unified(tar, source / case_name, format_name, Path(work))
            assert refusal is None, refusal
        for case_name in sorted({r["case"] for r in rows}):
            add_file(tar, f"modelopt/{case_name}/case.json", (source / case_name / "case.json").read_bytes())
        kept = {(r["case"], "hf") for r in rows} | {
            (r["case"], r["directory"]) for r in rows if r["directory"]
        }
        for case_name, directory in sorted(kept):
            _add_directory(tar, source / case_name / directory, f"modelopt/{case_name}/{directory}")
        add_file(tar, "modelopt/rows.json", json.dumps(rows, indent=0).encode())


def _find_error(case: Path, row: dict[str, Any]) -> str | None:
    """Return the first line of a refusal: of this export, or of the quantization before it."""
    if row["result"] == "ok":
        return None
    for entry in json.loads((case / "case.json").read_text())["conversions"]:
        if entry["result"] == "error" and entry["format"] == row["format"]:
            error = entry["error"]
            text = str(error.get("message") or error.get("text"))
            return f"{error['type']}: {text.splitlines()[0][:120]}"
    raise AssertionError(f"no refusal of {row}")


def _add_unified(tar: tarfile.TarFile, case: Path, format_name: str, work: Path) -> str | None:
    from enginix.errors import EnginixError

    directory = case / f"hf-quantized-{format_name}"
    try:
        if not directory.exists():
            directory = work / f"{case.name}-{format_name}"
            export_unified(case, format_name, directory)
        verify_unified(case, format_name, directory)
    except EnginixError as e:
        return e.what
    _add_directory(tar, directory, f"modelopt/{case.name}/unified-{format_name}")
    return None


def _add_directory(tar: tarfile.TarFile, directory: Path, name: str) -> None:
    for path in sorted(directory.iterdir()):
        if (
            path.name in ("config.json", "hf_quant_config.json", "quant_cfg.json")
            or path.suffix == ".safetensors"
        ):
            add_file(tar, f"{name}/{path.name}", path.read_bytes())


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]), Path(sys.argv[2]))
