"""Check parameter values of NVIDIA's models as the C++ backend would read them.

The backend parses optional keys leniently: it replaces a value that it cannot read by a default with a
warning in the log, so a typo never fails there (model_state.cc). Here it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.tables import load_table
from enginix.triton.suggestions import suggest_fix

# Booleans in model_state.cc; any other text is the default.
TRUE, FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
LOOKAHEAD = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")


def _is_fraction(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


_TYPES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "bool": ("true or false", lambda v: v in TRUE + FALSE),
    "int": ("a whole number", lambda v: re.fullmatch(r"\d{1,18}", v) is not None),
    "fraction": ("a number from 0 to 1", _is_fraction),
    "ints": ("whole numbers joined by commas", lambda v: re.fullmatch(r"\d+(,\d+)*", v) is not None),
    "devices": (
        "numbers joined by commas, instances by semicolons",
        lambda v: re.fullmatch(r"\d+(,\d+)*(;\d+(,\d+)*)*", v) is not None,
    ),
    "choices": ("lists such as {0,0},{0,1}", lambda v: re.fullmatch(r"\{[\d,{} ]*\}", v) is not None),
    "path": ("a path", lambda v: bool(v)),
    "string": ("text", lambda v: True),
}


def as_text(value: Any) -> str:
    """Return a JSON value as text, with booleans as the backend reads them."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def check_parameters(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Check the user's parameters of ``tensorrt_llm``, and return them as texts.

    Raises:
        RepositoryError: a key is unknown (with the nearest key), set by enginix, or not allowed; a value has
            another type or range; or values contradict each other.
    """
    rows = load_table("triton_contract")["models"]["tensorrt_llm"]["parameters"]
    checked_texts = {}
    for key, value in parameters.items():
        where = f"tensorrt_llm: parameter {key}"
        row = rows.get(key)
        if row is None:
            raise RepositoryError("unknown", where=where, fix=suggest_fix(key, rows))
        for reason in ("own", "refused"):
            if reason in row:
                says = "enginix writes it itself" if reason == "own" else "not to be set"
                raise RepositoryError(f"{says}: {row[reason]}", where=where, fix="leave it out")
        text = checked_texts[key] = as_text(value)
        if "values" in row:
            if text not in row["values"]:
                raise RepositoryError(
                    f"{text!r} is not one of its values", where=where, fix=suggest_fix(text, row["values"])
                )
            continue
        expected, fits = _TYPES[row["type"]]
        if not fits(text) or "${" in text:
            raise RepositoryError(f"{text!r} is not {expected}", where=where, fix=f"write {expected}")
    _check_combinations(checked_texts)
    return checked_texts


def _check_combinations(parameters: Mapping[str, str]) -> None:
    if float(parameters.get("kv_cache_free_gpu_mem_fraction", "1")) == 0:
        raise RepositoryError(
            "0 leaves no key-value cache",
            where="tensorrt_llm: parameter kv_cache_free_gpu_mem_fraction",
            fix="write a number above 0",
        )
    mode = parameters.get("decoding_mode")
    beams = int(parameters.get("max_beam_width", "1"))
    missing = [key for key in LOOKAHEAD if not int(parameters.get(key, "0"))]
    if mode == "lookahead" and missing:
        raise RepositoryError(
            f"lookahead needs {', '.join(missing)}",
            where="tensorrt_llm: parameter decoding_mode",
            fix="set all three, above 0",
        )
    if mode == "beam_search" and beams < 2:
        raise RepositoryError(
            "beam_search over max_beam_width 1",
            where="tensorrt_llm: parameter decoding_mode",
            fix="set max_beam_width of 2 or more, or another mode",
        )
    if mode not in (None, "beam_search") and beams > 1:
        raise RepositoryError(
            f"{mode} over max_beam_width {beams}",
            where="tensorrt_llm: parameter decoding_mode",
            fix="set beam_search, or max_beam_width 1",
        )
    info = parameters.get("xgrammar_tokenizer_info_path", "")
    if bool(parameters.get("guided_decoding_backend")) != bool(info):
        raise RepositoryError(
            "guided_decoding_backend and xgrammar_tokenizer_info_path belong together",
            where="tensorrt_llm",
            fix="set both, or neither",
        )
    if info and not Path(info).is_file():
        raise RepositoryError(
            f"{info!r} is not there",
            where="tensorrt_llm: parameter xgrammar_tokenizer_info_path",
            fix="TensorRT-LLM's generate_xgrammar_tokenizer_info.py writes it",
        )
