"""Stand-in for what needs TensorRT and a GPU in TensorRT Edge-LLM's wheel; everything else is the wheel's
own.

Imported by the stand-in Python (conftest.py) before any program. Real: argument parsers, model and
component selection, limits, the server's cache of engines, its HTTP application. Replaced: the builder's
body, and the step that loads the compiled runtime. STANDIN_MISBEHAVE makes the builder fail in a named
way.
"""

import json
import os
from pathlib import Path


def stand_in_build(args):
    from experimental.builder import cli

    bundle, components = cli._resolve_build_selection(args)
    misbehave = os.environ.get("STANDIN_MISBEHAVE", "")
    if misbehave == "oom":
        raise SystemExit("[TRT] [E] Error Code 2: OutOfMemory (CUDA error: out of memory)")
    if misbehave == "tensorrt":
        from tensorrt_edgellm._native.dependencies import require_tensorrt

        require_tensorrt()
    if misbehave == "nothing":
        return
    engine = Path(args.engine_dir)
    engine.mkdir(parents=True, exist_ok=True)
    (engine / "llm.engine").write_bytes(b"stand-in: not a TensorRT engine\n")
    config = {
        "engine_role": "llm",
        "spec_decode_type": "none",
        "model_type": bundle.root_model_type,
        "components": [c.value for c in components],
        "builder_config": {
            "max_input_len": args.max_input_len,
            "max_kv_cache_capacity": args.max_kv_cache_capacity + (misbehave == "limits"),
            "max_batch_size": args.max_batch_size,
        },
        "plugin_path": args.plugin_path,
    }
    if misbehave != "identity":
        config["checkpoint_identity"] = {"stand-in": True}
    (engine / "config.json").write_text(json.dumps(config))


class StandInRuntime:
    """What the compiled runtime is asked while the server starts."""

    def has_draft_model(self):
        return False


def stand_in_load_runtime(self):
    self._runtime = StandInRuntime()


try:
    from experimental.builder import cli
    from experimental.server.runtime import engine
except ImportError:
    pass  # a Python without the wheel: nothing to stand in for
else:
    cli._build = stand_in_build
    engine.LLM._load_runtime = stand_in_load_runtime
