"""LoRA adapters of an engine: check them before the build, and copy their files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.files import read_json_object, sha256_file
from enginix.kinds.tensorrt.build.options import OptionValue
from enginix.model.jsonfile import detect_other_content

ADAPTER_CONFIG = "adapter_config.json"
# PEFT's names that TensorRT-LLM maps; others raise a KeyError in its loader (lora_helper.py, 1.1/1.2 era).
MODULE_NAMES = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "down_proj", "up_proj",
    "w1", "w2", "w3", "gate", "gate_up_proj",
)  # fmt: skip
LARGEST_SEARCHED_FILE = 16 << 20


def find_input_path(directory: Path, inputs: Iterable[Path]) -> tuple[Path, str] | None:
    """Return a small file that contains an input's path, and the path; None without such a file.

    Such a path adds the weights to the closure of everything that serves the engine.
    """
    names = {os.fsencode(str(p)) for given in inputs for p in (given, Path(os.path.realpath(given)))}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.stat().st_size < LARGEST_SEARCHED_FILE:
            content = path.read_bytes()
            for name in names:
                if name in content:
                    return path, os.fsdecode(name)
    return None


def check_adapters(options: dict[str, OptionValue], inputs: list[Path], base: str) -> None:
    """Check the adapters of a request.

    Args:
        inputs: the model and the checkpoint.
        base: the model's name, for the fix of an error.

    Raises:
        UsageError: an adapter is missing, unreadable, or not supported by TensorRT-LLM.
    """
    directories = options.get("loraDir")
    if not isinstance(directories, list):
        return
    nemo = options.get("loraCkptSource") == "nemo"
    for name in directories:
        path = Path(name)
        if nemo:
            if not path.is_file():
                raise UsageError("no such file", where=name, fix="pass adapters of NeMo as .nemo files")
            continue
        if not path.is_dir():
            raise UsageError("no such directory", where=name, fix="pass LoRA adapters as directories")
        _check_peft_adapter(path, options, inputs, base)


def _check_peft_adapter(path: Path, options: dict[str, OptionValue], inputs: list[Path], base: str) -> None:
    where = str(path / ADAPTER_CONFIG)
    missing = UsageError("missing", where=where, fix="pass an adapter as PEFT saves it")
    config = read_json_object(path / ADAPTER_CONFIG, UsageError, "save the adapter again", missing)
    named_input = find_input_path(path, inputs)
    if named_input is not None:
        raise UsageError(
            f"contains the path of an input, {named_input[1]}, and would be copied into the engine",
            where=str(named_input[0]),
            fix=f'in a copy of the adapter, set base_model_name_or_path to the model\'s name, "{base}"',
        )
    modules = config.get("target_modules")
    if isinstance(modules, list) and options.get("loraTargetModules") is None:
        unknown = sorted(str(m) for m in modules if m not in MODULE_NAMES)
        if unknown:
            raise UsageError(
                f"target_modules has {', '.join(unknown)}, which TensorRT-LLM does not map",
                where=where,
                fix=f"use adapters of {', '.join(MODULE_NAMES)}, or name the engine's modules "
                "(loraTargetModules)",
            )
    _require_lora_weights(path)
    _refuse_unsupported_peft(config, where)
    most, pattern = options.get("maxLoraRank", 64), config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    rank = max((r for r in ranks if type(r) is int), default=0)
    if isinstance(most, int) and rank > most:
        raise UsageError(
            f"r is {rank}, above maxLoraRank {most}", where=where, fix=f"set maxLoraRank to {rank}"
        )
    if config.get("use_dora") is True and not options.get("doraPlugin"):
        raise UsageError("a DoRA adapter", where=where, fix="set doraPlugin")


def _require_lora_weights(path: Path) -> None:
    """Check that the weights of an adapter are there, and no pointer or page in their place."""
    weights = [path / f"adapter_model.{suffix}" for suffix in ("safetensors", "bin")]
    weights_file = next((file for file in weights if file.is_file()), None)
    if weights_file is None:
        raise UsageError(
            "no adapter_model.safetensors", where=str(path), fix="pass an adapter as PEFT saves it"
        )
    with weights_file.open("rb") as file:
        other = detect_other_content(file.read(512))
    if other is not None:
        raise UsageError(other[0], where=str(weights_file), fix=other[1])


def _refuse_unsupported_peft(config: Mapping[str, Any], where: str) -> None:
    """Refuse what TensorRT-LLM's loader raises for: other methods than LoRA, and tensors of other names."""
    kind, bias = config.get("peft_type", "LORA"), config.get("bias", "none")
    if kind != "LORA":
        raise UsageError(
            f"peft_type is {kind}, not LORA", where=where, fix="merge it into the model (merge_and_unload)"
        )
    if bias not in ("none", None):
        raise UsageError(
            f"bias is {bias}: TensorRT-LLM has no place for an adapter's biases",
            where=where,
            fix="merge it into the model (merge_and_unload), or train it with bias none",
        )
    saved = config.get("modules_to_save")
    saved = set(saved) if isinstance(saved, list) else set()
    if others := sorted(map(str, saved - {"lm_head", "embed_tokens"})):
        raise UsageError(
            f"modules_to_save has {', '.join(others)}, and TensorRT-LLM takes lm_head and embed_tokens alone",
            where=where,
            fix="merge it into the model (merge_and_unload)",
        )


def hash_adapters(adapters: OptionValue) -> list[dict[str, str]]:
    """Hash the files of each adapter: file name → digest."""
    assert isinstance(adapters, list)
    return [
        {p.name: sha256_file(p) for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if p.is_file()}
        for path in map(Path, adapters)
    ]


def copy_adapters(adapters: OptionValue, work: Path, inside: Path) -> list[str]:
    """Copy adapters into a build's work directory; returns their paths there, as the build sees them."""
    assert isinstance(adapters, list)
    inside_paths: list[Any] = []
    for number, adapter in enumerate(adapters):
        if Path(adapter).is_dir():
            shutil.copytree(adapter, work / "lora" / str(number))
            inside_paths.append(inside / "lora" / str(number))
        else:
            (work / "lora").mkdir(exist_ok=True)
            shutil.copyfile(adapter, work / "lora" / f"{number}.nemo")
            inside_paths.append(inside / "lora" / f"{number}.nemo")
    return [str(path) for path in inside_paths]
