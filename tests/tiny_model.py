"""The tiny trained models: fixtures, converted once a session, for the conftest of whoever judges them; and
what is done to them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.evaluation.reference_answers import hf
from enginix.tables import load_table

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def model() -> Path:
    return Path(__file__).parent / "models/tiny-qwen3"


@pytest.fixture(scope="session")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tensor-parallel ranks, so that cuts are among what is judged."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    convert_model(model, out, ConvertOptions(mapping=CheckpointMapping(2, 1, 1)))
    return out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread, and the machine may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def ask_little(questions: int = 12) -> Iterator[None]:
    """Leave the gates a part of their pinned material, for tests of what is done with the answers.

    Args:
        questions: number of questions with exact answers that are left; a test of significance needs many.
    """
    texts, prompts, facts = map(load_table, ("gate_text", "gate_prompts", "gate_facts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(texts, "text", texts["text"][:4])
        patch.setitem(texts, "questions", texts["questions"][:questions])
        patch.setitem(texts, "longest", 512)
        patch.setitem(prompts, "prompts", prompts["prompts"][:4])
        patch.setitem(facts, "lengths", facts["lengths"][:1])
        yield


@pytest.fixture(scope="module")
def little_material() -> Iterator[None]:
    """The gates' material is a part of the pinned one while a module is tested."""
    with ask_little():
        yield


@pytest.fixture(scope="session")
def recalling(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-recall: tiny-qwen3 with weights that find facts planted far back."""
    return make_recalling(model, tmp_path_factory.mktemp("recalling") / "tiny-recall")


def make_recalling(model: Path, out: Path) -> Path:
    """Puts tiny-recall's weights beside tiny-qwen3's configuration and tokenizer."""
    shutil.copytree(model, out)
    shutil.copy(model.parent / "tiny-recall/model.safetensors", out)
    return out


def make_llama(model: Path, out: Path) -> Path:
    """Puts tiny-llama's weights and configuration beside tiny-qwen3's tokenizer."""
    shutil.copytree(model, out)
    for name in ("model.safetensors", "config.json"):
        shutil.copy(model.parent / "tiny-llama" / name, out)
    return out


def quantize(model: Path, name: str, out: Path, texts: int = 12) -> Path:
    """ModelOpt's export of a model in a number format, calibrated on pieces of a licence text, converted."""
    import modelopt.torch.quantization as mtq
    import transformers
    from modelopt.torch.export import export_hf_checkpoint

    recipes = {
        "FP8": mtq.FP8_DEFAULT_CFG,
        "FP8_PC_PT": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
        "INT8_SQ": mtq.INT8_SMOOTHQUANT_CFG,
        "INT4_AWQ": mtq.INT4_AWQ_CFG,
        "W4A8_AWQ": mtq.W4A8_AWQ_BETA_CFG,
        "NVFP4": mtq.NVFP4_DEFAULT_CFG,
    }
    text = Path("/usr/share/common-licenses/GPL-3").read_text("utf-8")
    ids = torch.tensor(hf.TransformersTokenizer(model).encode(text)[: texts * 256]).view(texts, 256)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        recipe = recipes.get(name) or mtq.utils.update_quant_cfg_with_kv_cache_quant(
            copy.deepcopy(mtq.FP8_DEFAULT_CFG), mtq.FP8_KV_CFG["quant_cfg"]
        )
        mtq.quantize(loaded, recipe, lambda m: [m(row[None]) for row in ids])
        export_hf_checkpoint(loaded, torch.bfloat16, str(out / "hf"))
    convert_model(out / "hf", out / "checkpoint", ConvertOptions())
    return out / "checkpoint"


def damaged(checkpoint: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "rank0.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "rank0.safetensors")
    return out


def make_loud(model: Path, out: Path) -> Path:
    """The model with keys 256 times as large and queries as much smaller: the same function."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if "k_norm" in name:
            tensor.mul_(256)
        if "q_norm" in name:
            tensor.div_(256)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out
