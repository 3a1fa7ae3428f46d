"""Render a model's description as text."""

from __future__ import annotations

from enginix.console import format_bytes
from enginix.inspect.description import ModelDescription


def format_count(n: int) -> str:
    """Return a number in thousands, millions or billions: ``7615616512`` → ``7.62 B``."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def render_description(d: ModelDescription) -> str:
    """Render one line a property; unknown ones are left out, absent ones are listed as absent."""
    rows: list[tuple[str, str]] = []

    def row(label: str, value: object) -> None:
        if value not in (None, ""):
            # An untrusted text must not control the terminal.
            rows.append((label, "".join(c if c.isprintable() else "?" for c in str(value))))

    row("model", d.source)
    if d.repo and d.repo != d.source:
        row("repository", d.repo)
    row("revision", d.revision)
    row("licence", (d.license or "not stated") + (f", gated ({d.gated})" if d.gated else ""))
    row("architecture", d.architecture)
    if d.count:
        row("parameters", f"{format_count(d.count.parameters)} ({d.count.parameters:,})")
        kinds = ", ".join(f"{code} {format_bytes(n)}" for code, n in d.count.bytes_by_dtype.items())
        row("weights", f"{format_bytes(d.count.weight_bytes)} in {d.count.tensors} tensors: {kinds}")
    else:
        row("weights", "no safetensors")
    row("layers", d.layers)
    if d.heads:
        row("heads", f"{d.heads}, {d.kv_heads} KV heads, of size {d.head_size}")
    if d.hidden_size:
        mlp = f", MLP {d.intermediate_size}" if d.intermediate_size else ""
        row("hidden size", f"{d.hidden_size}{mlp}")
    if d.experts:
        row("experts", f"{d.experts} a layer, {d.experts_per_token} a token")
    row("vocabulary", f"{d.vocabulary:,}" + (", tied" if d.tied_embeddings else "") if d.vocabulary else None)
    row("context", f"{d.context:,} tokens" if d.context else None)
    row("dtype", d.dtype)
    if q := d.quantization:
        by = f" by {q.producer}" if q.producer else ""
        group = f", groups of {q.group_size}" if q.group_size else ""
        row("quantization", f"{q.algorithm or 'none'}{by}{group} ({q.said_by})")
        more = f", … ({len(q.exclude)})" if len(q.exclude) > 6 else ""
        row("not quantized", ", ".join(q.exclude[:6]) + more)
    else:
        row("quantization", "none")
    row("KV cache", (d.quantization and d.quantization.kv_cache) or "model's dtype")
    row("chat template", d.chat_template or "none")
    row("convertible", f"no: {d.refusal}" if d.refusal else "yes")
    row("files", f"{sum(map(len, d.files.values()))}, {format_bytes(d.size)}")
    for role, paths in d.files.items():
        shown = ", ".join(paths[:3]) + (f", … ({len(paths)})" if len(paths) > 3 else "")
        row(f"  {role}", shown)
    if d.fetched:
        row("fetched", format_bytes(d.fetched))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)
