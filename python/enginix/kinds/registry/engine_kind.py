"""What the rest of the package asks of a kind of engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from enginix.kinds.registry.model_verdict import ModelVerdict
from enginix.manifest import Manifest
from enginix.tables import load_table


@dataclass(frozen=True)
class TritonSupport:
    """How Triton serves a kind.

    Attributes:
        repository: module with ``prepare_content`` and ``read_contract`` (enginix.triton.repository_content).
        packages: what the repository's Python models import.
        extra: of this package, which brings them; None where they are in the runtime's image.
        has_ensemble: whether the models around the executor are an ensemble; else the executor takes text.
        probe: request of one token, text to text.
        has_rank_processes: whether the server has a process a GPU, which may be on several machines.
        starts_workers: whether the model itself starts a process a GPU.
        one_machine_reason: why one machine serves it, where it has none.
        start: module with what a start needs besides (:class:`StartModule`).
    """

    repository: str
    packages: tuple[str, ...]
    extra: str | None
    has_ensemble: bool
    probe: Mapping[str, Any]
    has_rank_processes: bool = False
    starts_workers: bool = False
    one_machine_reason: str = "it has no ranks"
    start: str | None = None


class StartModule(Protocol):
    """What the start of a kind's server needs besides."""

    def needs_gpu(self, options: Mapping[str, Any]) -> bool:
        """Return whether a repository with these options of its manifest is served by a GPU."""
        ...

    def list_variables(self, name: str) -> dict[str, str]:
        """Return variables of the server's environment.

        Args:
            name: of the engine.
        """
        ...

    def read_installed_versions(self) -> dict[str, str]:
        """Return versions of the runtime in this Python, by their names in the manifest."""
        ...

    def check_environment(self, python: Path, directory: Path, repository: Manifest) -> list[str]:
        """Check the environment of the Python models, and return notes.

        Raises:
            EnginixError: it cannot execute the engine; has the reason.
        """
        ...


@dataclass(frozen=True)
class OwnBuild:
    """A command of enginix that builds a kind of a checkpoint and its model, for all GPUs of a number format.

    Its gate is a part of it, and it has no options of a target or a runtime.

    Attributes:
        command: for instance ``rtx-build``.
        extra: of this package, which brings its libraries.
    """

    command: str
    extra: str


@dataclass(frozen=True, kw_only=True)
class EngineKind(ABC):
    """A kind of engine; ``KIND`` of ``kinds/NAME/kind.py`` is one.

    Attributes:
        name: as it stands in manifests and on the command line.
        summary: one line.
        built_from: what its build reads.
        build: module of the command line whose ``run`` does the work of ``enginix build``; None where the
            kind has commands of its own, ``build_commands``.
        own_build: of those commands the one that ``enginix up`` runs; None where it runs ``enginix build``.
        converted_as: the ``--kind`` of ``enginix convert`` that its checkpoints are made with.
        has_target: whether an engine is for one GPU, by an option.
        has_interpreter: whether PyTorch can execute the network of its checkpoint in the engine's place.
        gate_asker: module with ``ask_gated_engine`` (enginix.kinds.gating.gate_asking.GateAsker); None where
            the engine is asked in a process of its runtime.
        model_check: module with ``read_model_facts``, which refuses a model's directory without its weights;
            None where the conversion to its checkpoint does.
        memory_plan: module with ``plan_model`` and ``plan_lock``
            (kinds/planning/plan_record.py, KindPlanner); None where the plan is that of TensorRT-LLM's kinds.
        weights_folder: folder of an engine that holds its weights; None where they are inside compiled files.
        has_parallelism: whether it may run on several GPUs.
        has_pipeline: whether these may be stages of a pipeline.
        is_compiled: whether it is compiled for one GPU.
        is_portable: whether it runs on any machine, in a Python of this package.
        runs_in_image: whether its runtime is NVIDIA's image, inside which its gates ask it; else its own
            server answers them, or, of a portable kind, this package.
        server: OpenAI server of its own.
        server_by_hand: command that starts it where it needs more than the engine (``{engine}``).
        triton: None where Triton does not serve it.
    """

    name: str
    summary: str
    built_from: Literal["checkpoint", "model"]
    build: str | None = None
    build_commands: tuple[str, ...] = ()
    own_build: OwnBuild | None = None
    converted_as: str = "tensorrt"
    has_target: bool = True
    has_interpreter: bool = False
    gate_asker: str | None = None
    model_check: str | None = None
    memory_plan: str | None = None
    weights_folder: str | None = None
    has_parallelism: bool = False
    has_pipeline: bool = False
    server: str | None = None
    server_by_hand: str | None = None
    triton: TritonSupport | None = None

    @property
    def is_compiled(self) -> bool:
        return self._is("isCompiled")

    @property
    def is_portable(self) -> bool:
        return self._is("isPortable")

    @property
    def runs_in_image(self) -> bool:
        return self._is("runsInImage")

    @abstractmethod
    def judge_model(
        self, architecture: str | None, quantization: str | None, method: str | None = None
    ) -> ModelVerdict:
        """Return whether a model can become this kind, and on which GPUs.

        Args:
            method: ``quant_method`` of config.json; None or ``modelopt`` for ModelOpt's.
        """

    def explain_rotation(self, rotation: str) -> str | None:
        """Return why a model's rotation (type of its rotary scaling) is not taken; None where it is."""
        return None

    def explain_head_size(self, size: int) -> str | None:
        """Return why heads of a size are not taken; None where they are."""
        return None

    def _is(self, what: str) -> bool:
        """Return a value of engine_kinds.json, which parts without descriptions read too."""
        return bool(load_table("engine_kinds")["kinds"][self.name][what])
