"""Calibrate, quantize and export a model with ModelOpt."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix import device as devices
from enginix.errors import UsageError
from enginix.model.attention_code import choose_attention_code
from enginix.progress import track_step
from enginix.quantize.formats import MIXED, FormatChoice
from enginix.quantize.library_imports import import_library, translate_library_errors
from enginix.tables import load_table

if TYPE_CHECKING:
    import torch

    from enginix.quantize.calibration import Tokens

SEED = 1234
# Rows that AutoQuantize's scores are computed from: it runs them backward, too.
SCORED_ROWS = 64


def read_library_versions() -> dict[str, str]:
    """Return the versions of the libraries that the result depends on."""
    return {name: str(import_library(name).__version__) for name in ("modelopt", "torch", "transformers")}


def check_device(device: str) -> None:
    """Raise MachineError where ``device`` does not exist."""
    import_library("torch")
    devices.find_device(
        device, "use --device cpu for a small model; in Nix, a GPU builder (docs/how-to/quantize.md)"
    )


def load_model(directory: Path, device: str) -> Any:
    """Return the model in its own dtype on ``device``, in evaluation mode; code of the model is not run."""
    torch, transformers = import_library("torch"), import_library("transformers")
    torch.manual_seed(SEED)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with translate_library_errors("transformers"):
        config = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto",
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=choose_attention_code(config),
        )
        return model.eval().to(device)


def split_batches(tokens: Tokens, size: int, device: str) -> list[torch.Tensor]:
    """Return batches int64 [≤ size, sequence length], in the order of the rows."""
    torch = import_library("torch")
    rows = torch.from_numpy(tokens.astype("int64"))
    return [part.to(device) for part in rows.split(size)]


def insert_quantizers(model: Any, choice: FormatChoice, data: list[torch.Tensor]) -> Any:
    """Insert quantizers and calibrate them; for ``mixed``, search a format for each layer.

    Returns:
        The model; a search may hand back another object.

    Raises:
        UsageError: a budget that no assignment meets.
        ModelError: ModelOpt failed.
    """
    with translate_library_errors("modelopt"):
        mtq = import_library("modelopt.torch.quantization")
        kv_cache = load_table("quantize")["kvCache"].get(choice.kv_cache)
        entries = [] if kv_cache is None else list(getattr(mtq, kv_cache["recipe"])["quant_cfg"])
        if choice.name == MIXED:
            model = _search_formats(mtq, model, choice, data, entries)
        else:
            recipe = copy.deepcopy(getattr(mtq, choice.formats[0].recipe))
            recipe["quant_cfg"] = [*recipe["quant_cfg"], *entries]
            calibrated = choice.formats[0].calibrates or bool(entries)
            model = mtq.quantize(model, recipe, _make_calibration_loop(data) if calibrated else None)
        _set_neutral_scales(model, choice)
    return model


def export_checkpoint(model: Any, directory: Path) -> None:
    """Write the unified Hugging Face checkpoint.

    Raises:
        MachineError: the disk is full.
        ModelError: ModelOpt cannot export this model.
    """
    with translate_library_errors("modelopt's export"):
        import_library("modelopt.torch.export").export_hf_checkpoint(model, export_dir=directory)


def _make_calibration_loop(data: list[torch.Tensor]) -> Callable[[Any], None]:
    torch = import_library("torch")

    def loop(model: Any) -> None:
        arguments = _select_forward_arguments(model)
        with torch.no_grad(), track_step("calibrating", len(data), "batches") as progress:
            for batch in data:
                model(batch, **arguments)
                progress.advance()

    return loop


def _select_forward_arguments(model: Any) -> dict[str, Any]:
    """Return arguments for a forward pass without cache and logits; all recipes leave the head as it is."""
    known = inspect.signature(model.forward).parameters
    return {k: v for k, v in {"use_cache": False, "logits_to_keep": 1}.items() if k in known}


def _search_formats(
    mtq: Any, model: Any, choice: FormatChoice, data: list[torch.Tensor], entries: list[Any]
) -> Any:
    formats = []
    for candidate in choice.formats:
        recipe = copy.deepcopy(getattr(mtq, candidate.recipe))
        recipe["quant_cfg"] = [*recipe["quant_cfg"], *entries]
        formats.append(recipe if entries else getattr(mtq, candidate.recipe))
    rows = int(data[0].shape[0])
    try:
        searched, _ = mtq.auto_quantize(
            model,
            constraints={"effective_bits": choice.effective_bits},
            quantization_formats=formats,
            data_loader=data,
            forward_step=lambda m, batch: m(batch, labels=batch, use_cache=False),
            loss_func=lambda output, _: output.loss,
            disabled_layers=["*lm_head*", "*embed*", "*router*", "*.gate", "*.gate.*"],
            num_calib_steps=len(data),
            num_score_steps=max(1, min(len(data), SCORED_ROWS // rows)),
        )
    except ValueError as e:
        if "infeasible" in str(e):
            raise UsageError(
                f"--effective-bits {choice.effective_bits}: {str(e).splitlines()[0]}",
                fix="raise it; the unquantized head counts 16 bits a weight",
            ) from e
        raise
    return searched


def _set_neutral_scales(model: Any, choice: FormatChoice) -> None:
    """Set input scales of 1 for int4_wo, which is labelled W4A16_AWQ and needs them in that form."""
    if choice.name != "int4_wo":
        return
    torch = import_library("torch")
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled:
            weight = module.weight
            module.input_quantizer.pre_quant_scale = torch.ones(
                weight.shape[-1], dtype=weight.dtype, device=weight.device
            )
