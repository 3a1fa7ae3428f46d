"""Stand-in."""

import json
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

from . import __version__, standin_effects
from .plugin import PluginConfig
from .standin import refuse_quantization, sms, write_engine


class LLM:
    """Builds a model when it is made, as the real one, and save copies; given an engine, it answers."""

    def __new__(cls, model, **given):
        config = json.loads(Path(model, "config.json").read_text())
        if "pretrained_config" in config and "build_config" in config:
            from .standin_llm import EngineLLM

            return EngineLLM(model, **given)
        return super().__new__(cls)

    def __init__(self, model, tensor_parallel_size=1, pipeline_parallel_size=1, build_config=None):
        if multiprocessing.parent_process() is not None:
            raise RuntimeError("An attempt has been made to start a new process")
        if tensor_parallel_size == 1 and os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") != "1":
            raise RuntimeError("MPI spawn: All nodes which are allocated for this job are already filled")
        if not sms():
            raise RuntimeError("No CUDA GPUs are available")
        self.config = json.loads(Path(model, "config.json").read_text())
        self.mapping = {"tp_size": tensor_parallel_size, "pp_size": pipeline_parallel_size}
        self.build_config = build_config
        refuse_quantization(self.config.get("quantization", {}), sms()[0])
        self.built = self._build(build_config, sms()[0])
        Path(build_config.output_timing_cache).write_text("stand-in timing cache\n")

    def _build(self, build_config, sm):
        """As trtllm-build does it: LLM hands its BuildConfig to the same build()."""
        fields = dict(build_config.__dict__)
        plugins = dict((fields.pop("plugin_config") or PluginConfig()).__dict__)
        fields["kv_cache_type"] = fields["kv_cache_type"] or "PAGED"
        modes = {"NONE (=1)": 1, None: 1}
        mode = fields["speculative_decoding_mode"]
        fields["speculative_decoding_mode"] = modes.get(mode, mode)
        for name in ("dry_run", "visualize_network", "lora_config"):
            fields.pop(name, None)
        pretrained = {
            **self.config,
            "architecture": self.config["architectures"][0],
            "mapping": self.mapping,
            "dtype": self.config.get("torch_dtype") or self.config.get("dtype") or "bfloat16",
        }
        args = SimpleNamespace(lora_dir=None, lora_target_modules=None, gemm_plugin=None)
        standin_effects.build(args, pretrained, fields, plugins, sm)
        standin_effects.construct(pretrained, plugins)
        return {**fields, "plugin_config": plugins}

    def save(self, directory):
        pretrained = {"architecture": self.config["architectures"][0], "mapping": self.mapping}
        write_engine(Path(directory), None, pretrained, self.built, __version__)
