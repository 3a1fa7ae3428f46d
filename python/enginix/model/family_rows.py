"""Rows of family_rows.json: architectures that conversion reads by data alone, and their expressions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from enginix.model.model_errors import make_value_error
from enginix.tables import load_table


@cache
def list_family_rows() -> Mapping[str, Mapping[str, Any]]:
    """Return architecture → row; one that is the same as another has that one's content."""
    rows: Mapping[str, Mapping[str, Any]] = load_table("family_rows")["architectures"]
    return {name: {**rows.get(row.get("sameAs", ""), {}), **row} for name, row in rows.items()}


def find_written_name(architecture: str | None) -> str | None:
    """Return the name that a checkpoint has for an architecture, by which TensorRT-LLM finds its class."""
    written: str | None = list_family_rows().get(architecture or "", {}).get("writtenAs", architecture)
    return written


def has_exact_gelu(raw: Mapping[str, Any]) -> bool:
    """Return whether a model's activation is the exact GELU, which TensorRT-LLM's classes compute by tanh.

    Args:
        raw: the model's config.json.
    """
    row = list_family_rows().get(next(iter(raw.get("architectures") or ()), ""))
    if row is None:
        return False
    rule = row["activation"]
    if rule["key"] is None:
        return bool(rule.get("exact", False))
    return "gelu" in (read_model_values(raw, row).get(f"hf.{rule['key']}"), raw.get("hidden_act"))


def describe_formats(row: Mapping[str, Any]) -> str:
    """Return the formats in which conversion takes models of a row: ``in FP8, unquantized``."""
    return "".join(f"in {name}, " for name in row.get("formats", ())) + "unquantized"


def read_model_values(raw: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``hf.KEY`` → value of a model's config.json, absent keys with their class's default.

    Keys of nested objects are joined by dots: ``hf.attn_config.clip_qkv``. An alias counts before the
    class's own name, as in transformers.
    """
    values = {f"hf.{key}": value for key, value in row["defaults"].items()}
    for key, value in raw.items():
        values[f"hf.{key}"] = value
        if isinstance(value, dict):
            values |= {f"hf.{key}.{inner}": entry for inner, entry in value.items()}
    for alias, key in row.get("aliases", {}).items():
        if raw.get(alias) is not None:
            values[f"hf.{key}"] = raw[alias]
    return values


def list_keys_read(expression: Any) -> set[str]:
    """Return the keys of the model's config.json that an expression reads."""
    if isinstance(expression, str):
        return {expression.removeprefix("$hf.")} if expression.startswith("$hf.") else set()
    if isinstance(expression, list):
        return {key for entry in expression for key in list_keys_read(entry)}
    if isinstance(expression, dict):
        conditions = {key.removeprefix("hf.") for key in expression if key.startswith("hf.")}
        return conditions | list_keys_read(list(expression.values()))
    return set()


def list_literals(expression: Any) -> tuple[str, ...]:
    """Return the strings that an expression can become."""
    if isinstance(expression, dict) and "case" in expression:
        return tuple(text for _, value in expression["case"] for text in list_literals(value))
    return (expression,) if isinstance(expression, str) and not expression.startswith("$") else ()


def holds_condition(condition: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether every key has the value that the condition names; an absent key is null."""
    return all(
        type(values.get(key)) is type(expected) and values.get(key) == expected
        for key, expected in condition.items()
    )


def evaluate_expression(expression: Any, values: Mapping[str, Any], where: str) -> Any:
    """Return the value of an expression of family_rows.json.

    Args:
        expression: a literal, ``$NAME``, or an object with one of case, add, multiply, divide, sqrt.
        values: name → value.

    Raises:
        ModelError: an operand of arithmetic is not a positive number.
    """
    if isinstance(expression, str) and expression.startswith("$"):
        return values.get(expression[1:])
    if not isinstance(expression, dict):
        return expression
    if "case" in expression:
        chosen = next((value for when, value in expression["case"] if holds_condition(when, values)), None)
        return evaluate_expression(chosen, values, where)
    if len(expression) == 1 and next(iter(expression)) in ("add", "multiply", "divide", "sqrt"):
        ((operation, inner),) = expression.items()
        operands = [
            (operand, evaluate_expression(operand, values, where))
            for operand in (inner if isinstance(inner, list) else [inner])
        ]
        for operand, number in operands:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 1e300:
                raise make_value_error(
                    f"{operand} is {number!r}, not a positive number".replace("$hf.", ""), where
                )
        numbers = [number for _, number in operands]
        if operation == "sqrt":
            return math.sqrt(numbers[0])
        if operation == "add":
            return numbers[0] + numbers[1]
        return numbers[0] * numbers[1] if operation == "multiply" else numbers[0] / numbers[1]
    return {key: evaluate_expression(value, values, where) for key, value in expression.items()}
