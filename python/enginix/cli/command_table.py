"""The commands by their names."""

from __future__ import annotations

from enginix.errors import UsageError
from enginix.wording import find_nearest

# Command → what it does, in the order of the overview.
_SUMMARIES = {
    "up": "a model's name → an OpenAI endpoint on loopback: every stage, cached, in one command",
    "doctor": "look at this machine: what stages need, and how to mend what is missing",
    "chat": "talk to an endpoint in the terminal",
    "bench": "measure the speed of an engine or endpoint; compare two measurements (gate speed)",
    "lock": "pin a Hub repository: commit, files, sizes, sha256; no weight is downloaded",
    "pin": "pin a model and its runtime in a flake's directory, for nix build .#NAME-engine",
    "fetch": "download what a lock pins, verified, resumable",
    "fetch-file": "download one file of a commit, verified: what a Nix build runs",
    "fetch-tree": "download a whole commit as a git-lfs clone without .git has it",
    "check-facts": "compare a lock's facts with the configuration it pins: what a Nix build runs",
    "inspect": "describe a model from its configuration and headers; kilobytes of a Hub repository",
    "compare": "compare artefacts in one table and plot: size, bits, quality, speed; "
    "or all kinds of one model",
    "target": "list GPUs by name: SM, memory, number formats, and which this machine has",
    "plan": "tell whether a model fits a GPU: weights, KV cache, spare memory; build needs; smallest change",
    "calibrate": "text → one hashed file of token ids, for quantize to calibrate with",
    "quantize": "Hugging Face model → quantized one, by ModelOpt, checked",
    "convert": "Hugging Face model → TensorRT-LLM checkpoint",
    "verify-checkpoint": "check a TensorRT-LLM checkpoint: names, shapes, dtypes, coverage",
    "build": "checkpoint → engine, with its manifest and gates",
    "reference": "compute a model's answers to the gates' questions, once for all its engines",
    "gate": "compare an engine's answers with its model's: evidence, report, exit status",
    "check": "tell whether this machine runs an engine: GPU, driver, runtime, against its manifest",
    "verify": "check that an artefact and its inputs are what their manifests list; demand a signature",
    "sign": "sign an artefact's manifest with an SSH key; write an in-toto statement",
    "runtime": "pinned NVIDIA images: list, pin, run a command inside one",
    "runner": "build an engine at first run into the user's cache, then serve it",
    "cache": "engines that enginix runner has built: list, prune",
    "edgellm-export": "Hugging Face model → checked ONNX export for TensorRT Edge-LLM, on a CPU",
    "edgellm-build": "export → TensorRT Edge-LLM engine, on the target's GPU",
    "edgellm-serve": "serve a TensorRT Edge-LLM engine over OpenAI's interface, on loopback",
    "rtx-build": "checkpoint → engine of TensorRT for RTX, on a CPU, its network verified",
    "triton-repo": "engine → Triton model repository, validated",
    "tritonserver": "put a tritonserver for this Python into a directory, out of a pinned wheel",
    "serve": "start Triton on a repository, loopback by default; ask it; stop it",
    "ready": "wait until an OpenAI server has answered: readiness for systemd",
    "rollout": "try a changed server beside the running one, before NixOS switches to it",
    "gateway": "OpenAI interface, keys and limits in front of Triton and other servers (LiteLLM)",
    "completion": "print the completion script of bash, zsh or fish",
}

# Folder of this package → its commands, a module each; one package of the flake has a folder's commands.
_FOLDERS = {
    "serving": "up doctor chat bench triton-repo tritonserver serve ready rollout",
    "conversion": "lock fetch fetch-file fetch-tree check-facts convert verify-checkpoint",
    "engines": "pin build check runtime runner cache",
    "models": "inspect target plan",
    "comparison": "compare",
    "quantization": "calibrate quantize",
    "answers": "reference",
    "gating": "gate",
    "trust": "verify sign",
    "edgellm": "edgellm-export edgellm-build edgellm-serve",
    "rtx": "rtx-build",
    "gateway": "gateway",
    "shell": "completion",
}

_PLACES = {
    name: f"{folder}.{name.removeprefix(f'{folder}-').replace('-', '_')}"
    for folder, names in _FOLDERS.items()
    for name in names.split()
}
# Command → its module in this package and what it does.
COMMANDS = {name: (_PLACES[name], summary) for name, summary in _SUMMARIES.items()}

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
