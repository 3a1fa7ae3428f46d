"""The commands by their names."""

from __future__ import annotations

from enginix.errors import UsageError
from enginix.wording import find_nearest

# Command → its module in this package and what it does. A folder holds the commands that one package of the
# flake has.
COMMANDS = {
    "up": (
        "serving.up",
        "a model's name → an OpenAI endpoint on loopback: every stage, cached, in one command",
    ),
    "doctor": ("serving.doctor", "look at this machine: what stages need, and how to mend what is missing"),
    "chat": ("serving.chat", "talk to an endpoint in the terminal"),
    "bench": (
        "serving.bench",
        "measure the speed of an engine or endpoint; compare two measurements (gate speed)",
    ),
    "lock": (
        "conversion.lock",
        "pin a Hub repository: commit, files, sizes, sha256; no weight is downloaded",
    ),
    "pin": ("engines.pin", "pin a model and its runtime in a flake's directory, for nix build .#NAME-engine"),
    "fetch": ("conversion.fetch", "download what a lock pins, verified, resumable"),
    "fetch-file": ("conversion.fetch_file", "download one file of a commit, verified: what a Nix build runs"),
    "fetch-tree": ("conversion.fetch_tree", "download a whole commit as a git-lfs clone without .git has it"),
    "check-facts": (
        "conversion.check_facts",
        "compare a lock's facts with the configuration it pins: what a Nix build runs",
    ),
    "inspect": (
        "models.inspect",
        "describe a model from its configuration and headers; kilobytes of a Hub repository",
    ),
    "compare": (
        "comparison.compare",
        "compare artefacts in one table and plot: size, bits, quality, speed; or all kinds of one model",
    ),
    "target": ("models.target", "list GPUs by name: SM, memory, number formats, and which this machine has"),
    "plan": (
        "models.plan",
        "tell whether a model fits a GPU: weights, KV cache, spare memory; build needs; smallest change",
    ),
    "calibrate": (
        "quantization.calibrate",
        "text → one hashed file of token ids, for quantize to calibrate with",
    ),
    "quantize": ("quantization.quantize", "Hugging Face model → quantized one, by ModelOpt, checked"),
    "convert": ("conversion.convert", "Hugging Face model → TensorRT-LLM checkpoint"),
    "verify-checkpoint": (
        "conversion.verify_checkpoint",
        "check a TensorRT-LLM checkpoint: names, shapes, dtypes, coverage",
    ),
    "build": ("engines.build", "checkpoint → engine, with its manifest and gates"),
    "reference": (
        "answers.reference",
        "compute a model's answers to the gates' questions, once for all its engines",
    ),
    "gate": ("gating.gate", "compare an engine's answers with its model's: evidence, report, exit status"),
    "check": (
        "engines.check",
        "tell whether this machine runs an engine: GPU, driver, runtime, against its manifest",
    ),
    "verify": (
        "trust.verify",
        "check that an artefact and its inputs are what their manifests list; demand a signature",
    ),
    "sign": ("trust.sign", "sign an artefact's manifest with an SSH key; write an in-toto statement"),
    "runtime": ("engines.runtime", "pinned NVIDIA images: list, pin, run a command inside one"),
    "runner": ("engines.runner", "build an engine at first run into the user's cache, then serve it"),
    "cache": ("engines.cache", "engines that enginix runner has built: list, prune"),
    "edgellm-export": (
        "edgellm.export",
        "Hugging Face model → checked ONNX export for TensorRT Edge-LLM, on a CPU",
    ),
    "edgellm-build": ("edgellm.build", "export → TensorRT Edge-LLM engine, on the target's GPU"),
    "edgellm-serve": (
        "edgellm.serve",
        "serve a TensorRT Edge-LLM engine over OpenAI's interface, on loopback",
    ),
    "rtx-build": ("rtx.build", "checkpoint → engine of TensorRT for RTX, on a CPU, its network verified"),
    "triton-repo": ("serving.triton_repo", "engine → Triton model repository, validated"),
    "tritonserver": (
        "serving.tritonserver",
        "put a tritonserver for this Python into a directory, out of a pinned wheel",
    ),
    "serve": ("serving.serve", "start Triton on a repository, loopback by default; ask it; stop it"),
    "ready": ("serving.ready", "wait until an OpenAI server has answered: readiness for systemd"),
    "rollout": (
        "serving.rollout",
        "try a changed server beside the running one, before NixOS switches to it",
    ),
    "gateway": (
        "gateway.gateway",
        "OpenAI interface, keys and limits in front of Triton and other servers (LiteLLM)",
    ),
    "completion": ("shell.completion", "print the completion script of bash, zsh or fish"),
}

# Commands that only builds call; the overview omits them.
INTERNAL_COMMANDS = ("fetch-file", "fetch-tree", "check-facts")

# Commands that answer for their own terminal: servers, and what runs other programs.
OWN_TERMINAL = ("up", "chat", "serve", "ready", "rollout", "gateway", "edgellm-serve", "runner", "runtime")

# Commands of earlier versions → what replaces them.
REMOVED = {
    "openai-frontend": "enginix gateway puts OpenAI's interface in front of Triton; trtllm-serve has its own"
}


def list_commands() -> list[str]:
    return [name for name in COMMANDS if name not in INTERNAL_COMMANDS]


def refuse_command(name: str) -> UsageError:
    if name in REMOVED:
        return UsageError(f"{name} was removed", fix=REMOVED[name])
    near = find_nearest(name, COMMANDS)
    fix = f"enginix {near}; enginix --help lists all" if near else "enginix --help lists them"
    return UsageError(f"unknown command {name!r}", fix=fix)
