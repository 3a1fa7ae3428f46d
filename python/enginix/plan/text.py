"""A plan as people read it."""

from __future__ import annotations

from enginix.console import human_bytes
from enginix.plan import edgellm
from enginix.plan.arithmetic import Change, Limits
from enginix.plan.planner import Plan

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


def say(change: Change) -> str:
    """One change in the command's own flags."""
    return " with ".join(FLAGS[name].format(value) for name, value in change.items())


def verdict(plan: Plan) -> str:
    """One line: fits or not, and what is tightest."""
    memory = plan.memory
    if not memory.fits:
        why = {
            "weights": f"the weights of a rank alone are {human_bytes(memory.weights)}",
            "workspace": "weights and workspace take all of it",
            "kvCache": f"the KV cache has room for {memory.tokens:,} of {memory.need_tokens:,} tokens",
        }[memory.tightest]
        return f"does not fit {plan.gpu.name} ({human_bytes(memory.total)}): {why}"
    if plan.obstacles:
        return f"memory suffices on {plan.gpu.name}, but: {plan.obstacles[0]}"
    spare = memory.tokens / memory.need_tokens
    size = human_bytes(memory.total)
    return f"fits {plan.gpu.name} ({size}); tightest: KV cache, {spare:.1f} x what is needed"


def _limits(limits: Limits | edgellm.Limits) -> str:
    if isinstance(limits, edgellm.Limits):
        return (
            f"batch {limits.max_batch_size}, prompts of {limits.max_input_len}, "
            f"KV cache of {limits.max_kv_cache_capacity} tokens a sequence, allocated from the start"
        )
    world = limits.tensor_parallel * limits.pipeline_parallel
    return (
        f"batch {limits.max_batch_size}, {limits.max_num_tokens} tokens a step, "
        f"{world} rank{'s' * (world > 1)} (TP {limits.tensor_parallel}, PP {limits.pipeline_parallel})"
    )


def render(plan: Plan) -> str:
    """The verdict, the figures behind it, and what would help."""
    m, limits, build = plan.memory, plan.limits, plan.build
    kv = limits.kv_bits or plan.sizes.kv_bits
    rank = "" if plan.kind == "edgellm" else " a rank"
    rows = []
    if plan.gpu.formats:
        rows.append(("GPU", f"SM {plan.gpu.sm}, computes with {', '.join(plan.gpu.formats)}"))
    rows += [
        ("weights", f"{human_bytes(m.weights)}{rank}" + ("" if plan.exact else " (estimate)")),
        ("workspace", f"{human_bytes(m.workspace)} (estimate, not measured)"),
        (
            "KV cache",
            f"{human_bytes(m.pool)} for {m.tokens:,} tokens of {human_bytes(m.kv_token)} ({kv}-bit)",
        ),
        ("sequences", f"{plan.sequences} of {limits.max_seq_len:,} tokens at the same time"),
        ("limits", _limits(limits)),
    ]
    if plan.kind == "tensorrt":
        rows += [
            (
                "build",
                f"GPU {human_bytes(build.gpu_memory)}, host memory {human_bytes(build.host_memory)} a rank, "
                f"TMPDIR {human_bytes(build.tmpdir)} (estimates)",
            ),
            (
                "store",
                f"{human_bytes(build.store)}: model {human_bytes(build.model)}, checkpoint "
                f"{human_bytes(build.checkpoint)}, engine about {human_bytes(build.engine)}",
            ),
        ]
    rows += [("obstacle", text) for text in plan.obstacles]
    if not m.fits:
        if plan.changes:
            rows.append(("smallest change", say(plan.changes[0])))
            rows += [("or", say(change)) for change in plan.changes[1:]]
        else:
            rows.append(
                ("smallest change", "none on this target: a GPU with more memory, or a smaller model")
            )
    rows += [("note", text) for text in plan.notes]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    return "\n".join([f"{plan.source}: {verdict(plan)}", *lines])
