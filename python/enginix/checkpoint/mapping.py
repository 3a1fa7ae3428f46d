"""How ranks share a model: tensor, pipeline and expert parallelism."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from enginix.errors import UsageError
from enginix.model import ModelConfig
from enginix.tables import load_table

# As many ranks as --hosts can give a machine.
MOST_GPUS = 999


def default_gpus_per_node() -> int:
    """What TensorRT-LLM takes where a checkpoint does not say it."""
    return int(load_table("memory_constants")["defaults"]["gpusPerNode"]["value"])


@dataclass(frozen=True)
class CheckpointMapping:
    """Sizes of each kind of parallelism.

    ``rank = pp_rank * tensor_parallel + tp_rank``; the experts' parallelism divides the tensor parallel
    ranks: ``moe_ep_rank = tp_rank % expert_parallel``, ``moe_tp_rank = tp_rank // expert_parallel``.
    Source: the golden data.

    Attributes:
        gpus_per_node: TensorRT-LLM runs a rank on GPU ``rank % gpus_per_node`` of its node; nothing else of a
            checkpoint depends on it.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    gpus_per_node: int = field(default_factory=default_gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def expert_tensor_parallel(self) -> int:
        return self.tensor_parallel // self.expert_parallel

    @property
    def fills_nodes(self) -> bool:
        """Whether the ranks are on one node or fill several, so that none shares its GPU with another."""
        return self.world_size <= self.gpus_per_node or self.world_size % self.gpus_per_node == 0

    def ranks(self) -> range:
        return range(self.world_size)

    def tp_rank(self, rank: int) -> int:
        return rank % self.tensor_parallel

    def pp_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel

    def layers(self, pp_rank: int, total: int) -> range:
        """Global layer numbers of a pipeline stage; the first stages take the remainder, one each."""
        stage_size, remainder = divmod(total, self.pipeline_parallel)
        begin = pp_rank * stage_size + min(pp_rank, remainder)
        return range(begin, begin + stage_size + (pp_rank < remainder))


def _list_divisors(*numbers: int) -> list[int]:
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def _is_tp_possible(config: ModelConfig, tp: int, ep: int) -> bool:
    heads, kv = config.num_heads, config.num_kv_heads
    if heads % tp or (kv % tp and tp % kv) or tp % ep or config.hidden_size < tp:
        return False
    if config.experts is None:
        return config.intermediate_size % tp == 0
    shared = config.experts.shared_width
    return config.experts.width % (tp // ep) == 0 and shared % tp == 0


def _join_sizes(candidates: Iterable[int]) -> str:
    return ", ".join(map(str, candidates)) or "none"


def check_parallelism(config: ModelConfig, mapping: CheckpointMapping) -> None:
    """Refuses sizes that do not divide the model, naming those that would.

    Raises:
        UsageError: with every size of the offending kind that works, up to 64.
    """
    tp, pp, ep = mapping.tensor_parallel, mapping.pipeline_parallel, mapping.expert_parallel
    for name, size in (("tensor", tp), ("pipeline", pp), ("expert", ep)):
        if size < 1:
            raise UsageError(f"--{name}-parallel {size} is below 1", fix="pass 1 or more")
    where = f"{config.architecture}, {config.num_heads} heads, {config.num_kv_heads} KV heads"
    if config.experts is None and ep != 1:
        raise UsageError(
            f"--expert-parallel {ep}: the model has no experts", where=where, fix="--expert-parallel 1"
        )
    if config.experts is not None:
        working_sizes = [d for d in _list_divisors(config.experts.count) if tp % d == 0]
        if ep not in working_sizes:
            raise UsageError(
                f"--expert-parallel {ep} does not divide {config.experts.count} experts "
                f"and --tensor-parallel {tp}",
                where=where,
                fix=f"--expert-parallel one of {_join_sizes(working_sizes)}",
            )
    if not _is_tp_possible(config, tp, ep):
        width = config.experts.width if config.experts else config.intermediate_size
        working_sizes = [n for n in range(1, 65) if _is_tp_possible(config, n, ep)]
        raise UsageError(
            f"--tensor-parallel {tp} does not divide heads, KV heads (or the other way round) "
            f"and intermediate size {width}",
            where=where,
            fix=f"--tensor-parallel one of {_join_sizes(working_sizes)}",
        )
    if pp > config.num_layers:
        raise UsageError(
            f"--pipeline-parallel {pp} exceeds {config.num_layers} layers",
            where=where,
            fix=f"--pipeline-parallel 1 to {config.num_layers}",
        )


def check_pipeline_support(config: ModelConfig, mapping: CheckpointMapping) -> None:
    """Refuses pipeline stages that no engine can load.

    Raises:
        UsageError: TensorRT-LLM's class has no pipeline.
    """
    row = load_table("architectures")["architectures"].get(config.architecture, {})
    if mapping.pipeline_parallel > 1 and "noPipeline" in row:
        working_sizes = [n for n in range(1, 65) if _is_tp_possible(config, n, mapping.expert_parallel)]
        raise UsageError(
            f"--pipeline-parallel {mapping.pipeline_parallel}: TensorRT-LLM has no pipeline for "
            f"{config.architecture}; {row['noPipeline']}",
            fix=f"leave --pipeline-parallel out, with --tensor-parallel one of {_join_sizes(working_sizes)}",
        )


def check_node_sizes(mapping: CheckpointMapping) -> None:
    """Refuses ranks that do not fill nodes of ``gpus_per_node`` GPUs, naming sizes that would.

    Raises:
        UsageError: such ranks, or no number of GPUs.
    """
    world, gpus_per_node = mapping.world_size, mapping.gpus_per_node
    if not 1 <= gpus_per_node <= MOST_GPUS:
        raise UsageError(
            f"--gpus-per-node {gpus_per_node} is not from 1 to {MOST_GPUS}",
            fix=f"as many as a node that serves has, for instance {default_gpus_per_node()}",
        )
    if not mapping.fills_nodes:
        node_sizes = [n for n in _list_divisors(world) if n < world]
        raise UsageError(
            f"--gpus-per-node {gpus_per_node} with {world} ranks, which are neither at most {gpus_per_node}, on one node, "
            f"nor a multiple of it, on several",
            where=f"--tensor-parallel {mapping.tensor_parallel} --pipeline-parallel "
            f"{mapping.pipeline_parallel}",
            fix=f"--gpus-per-node {world} for one node, {_join_sizes(node_sizes)} for several; "
            f"or {world // gpus_per_node * gpus_per_node} or {(world // gpus_per_node + 1) * gpus_per_node} ranks",
        )
