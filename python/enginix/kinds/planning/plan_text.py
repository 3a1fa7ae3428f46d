"""A memory plan as text."""

from __future__ import annotations

from enginix.console import format_bytes
from enginix.kinds.planning.plan_record import MemoryPlan
from enginix.kinds.registry import find_kind
from enginix.memory_plan.arithmetic import Change

FLAGS = {
    "max_num_tokens": "--max-num-tokens {}",
    "max_batch_size": "--max-batch-size {}",
    "kv_bits": "an FP8 KV cache (--kv-cache FP8)",
    "sequences": "--sequences {}",
    "max_seq_len": "--max-seq-len {}",
    "max_kv_cache_capacity": "--max-seq-len {}",
    "max_input_len": "--max-input-len {}",
    "tensor_parallel": "--tensor-parallel {}",
    "quantization": "the model quantized to {}",
}


def format_change(change: Change) -> str:
    """Format a change as flags of the command."""
    return " with ".join(FLAGS[name].format(value) for name, value in change.items())


def format_verdict(plan: MemoryPlan) -> str:
    """Format the verdict as one line: fits or not, and the tightest resource."""
    memory = plan.memory
    if not memory.fits:
        why = {
            "weights": f"the weights of a rank alone are {format_bytes(memory.weights)}",
            "workspace": "weights and workspace take all of it",
            "kvCache": f"the KV cache has room for {memory.tokens:,} of {memory.need_tokens:,} tokens",
        }[memory.tightest]
        return f"does not fit {plan.gpu.name} ({format_bytes(memory.total)}): {why}"
    if plan.obstacles:
        return f"memory suffices on {plan.gpu.name}, but: {plan.obstacles[0]}"
    spare = memory.tokens / memory.need_tokens
    size = format_bytes(memory.total)
    return f"fits {plan.gpu.name} ({size}); tightest: KV cache, {spare:.1f} x what is needed"


def render_plan(plan: MemoryPlan) -> str:
    """Render the verdict, its figures, and the smallest change."""
    m, limits, build = plan.memory, plan.limits, plan.build
    kv = limits.kv_bits or plan.sizes.kv_bits
    kind = find_kind(plan.kind)
    rank = " a rank" if kind.memory_plan is None else ""
    rows = []
    if plan.gpu.formats:
        rows.append(("GPU", f"SM {plan.gpu.sm}, computes with {', '.join(plan.gpu.formats)}"))
    # Makers count in 10^9 bytes, drivers and the rest of this text in 2^30.
    rows.append(("memory", f"{m.total / 10**9:.1f} GB = {format_bytes(m.total)}"))
    rows += [
        ("weights", f"{format_bytes(m.weights)}{rank} ({plan.certainty.weights})"),
        ("workspace", f"{format_bytes(m.workspace)} ({plan.certainty.workspace}, not measured)"),
        (
            "KV cache",
            f"{format_bytes(m.pool)} ({plan.certainty.pool}) for {m.tokens:,} tokens of "
            f"{format_bytes(m.kv_token)} ({kv}-bit, {plan.certainty.kv_token})",
        ),
        (
            "sequences",
            f"memory for {plan.sequences:,} of {limits.max_seq_len:,} tokens; "
            f"at most {limits.max_batch_size} are computed at the same time",
        ),
        ("limits", limits.describe()),
    ]
    if kind.is_compiled and build.host_memory:
        gpu_memory = f"GPU {format_bytes(build.gpu_memory)}" if build.gpu_memory else "no GPU"
        tmpdir = f", TMPDIR {format_bytes(build.tmpdir)}" if build.tmpdir else ""
        rows += [
            (
                "build",
                f"{gpu_memory}, host memory {format_bytes(build.host_memory)}{rank}{tmpdir} (estimates)",
            ),
            (
                "store",
                f"{format_bytes(build.store)}: model {format_bytes(build.model)}, checkpoint "
                f"{format_bytes(build.checkpoint)}, engine about {format_bytes(build.engine)}",
            ),
        ]
    rows += [("obstacle", text) for text in plan.obstacles]
    if not m.fits:
        if plan.changes:
            rows.append(("smallest change", format_change(plan.changes[0])))
            rows += [("or", format_change(change)) for change in plan.changes[1:]]
        else:
            rows.append(
                ("smallest change", "none on this target: a GPU with more memory, or a smaller model")
            )
    rows += [("note", text) for text in plan.notes]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    return "\n".join([f"{plan.source}: {format_verdict(plan)}", *lines])
