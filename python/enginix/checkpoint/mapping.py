"""Parallelism: the division of a model over ranks by tensor, pipeline and experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from enginix.errors import UsageError
from enginix.letter_case import camel_case_keys
from enginix.model import ModelConfig
from enginix.tables import load_table

# Most ranks that --hosts can give a machine.
MOST_GPUS = 999


def default_gpus_per_node() -> int:
    """Return TensorRT-LLM's default for checkpoints without ``gpus_per_node``."""
    return int(load_table("memory_constants")["defaults"]["gpusPerNode"]["value"])


@dataclass(frozen=True)
class CheckpointMapping:
    """The sizes of each kind of parallelism.

    ``rank = pp_rank * tensor_parallel + tp_rank``; the experts' parallelism divides the tensor parallel
    ranks: ``moe_ep_rank = tp_rank % expert_parallel``, ``moe_tp_rank = tp_rank // expert_parallel``.
    Source: the golden data.

    Attributes:
        gpus_per_node: TensorRT-LLM runs a rank on GPU ``rank % gpus_per_node`` of its node; only that depends
            on it.
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
        """Return whether the ranks fit on one node or fill several, so that each has its own GPU."""
        return self.world_size <= self.gpus_per_node or self.world_size % self.gpus_per_node == 0

    def as_options(self) -> dict[str, int]:
        """Return the sizes by their names in a manifest's options."""
        return dict(camel_case_keys(asdict(self)))

    def ranks(self) -> range:
        return range(self.world_size)

    def tp_rank(self, rank: int) -> int:
        return rank % self.tensor_parallel

    def pp_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel

    def layers(self, pp_rank: int, total: int) -> range:
        """Return the global layer numbers of a pipeline stage; the first stages take the remainder."""
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
    if config.description.get("layout", {}).get("experts", {}).get("dense") and config.intermediate_size % tp:
        return False
    return config.experts.width % (tp // ep) == 0 and shared % tp == 0


def _list_working_sizes(config: ModelConfig, ep: int) -> list[int]:
    """Return the tensor-parallel sizes that the model's sizes and its engine class allow."""
    row = config.description
    return [
        n
        for n in range(1, 65)
        if _is_tp_possible(config, n, ep)
        and not ("vocabulary" in row and config.vocab_size % n)
        and not ("kvReplication" in row and config.num_kv_heads < n)
    ]


def _join_sizes(candidates: Iterable[int]) -> str:
    return ", ".join(map(str, candidates)) or "none"


def check_parallelism(config: ModelConfig, mapping: CheckpointMapping) -> None:
    """Refuse sizes that do not divide the model; the error lists working ones.

    Raises:
        UsageError: a size does not work; the error lists up to 64 that do.
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
        working_sizes = _list_working_sizes(config, ep)
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
    """Refuse pipeline stages that no engine can load.

    Raises:
        UsageError: TensorRT-LLM's class does not support pipeline parallelism.
    """
    row = config.description
    reason = row.get("noPipeline", row.get("pipeline"))
    if mapping.pipeline_parallel > 1 and reason is not None:
        working_sizes = _list_working_sizes(config, mapping.expert_parallel)
        raise UsageError(
            f"--pipeline-parallel {mapping.pipeline_parallel}: TensorRT-LLM has no pipeline for "
            f"{config.architecture}; {reason}",
            fix=f"leave --pipeline-parallel out, and use --tensor-parallel {_join_sizes(working_sizes)}",
        )


def check_family_options(
    config: ModelConfig, mapping: CheckpointMapping, quantize: str | None, kv_cache: str | None
) -> None:
    """Refuse options that conversion by a row of family_rows.json does not have.

    Raises:
        UsageError: the option, and what works.
    """
    row, tp = config.description, mapping.tensor_parallel
    if quantize is not None or (kv_cache is not None and "formats" not in row):
        option = f"--quantize {quantize}" if quantize is not None else f"--kv-cache {kv_cache}"
        raise UsageError(
            f"{option}: {config.architecture} is not converted so",
            fix="leave it out and quantize the model first: enginix quantize --format fp8 --kv-cache fp8"
            if "formats" in row
            else "leave it out, or serve the model with the llmapi kind",
        )
    divisor = row["layout"].get("widthDivisor", 1)
    if config.intermediate_size // divisor % tp:
        sizes = [n for n in range(1, 65) if config.intermediate_size // divisor % n == 0]
        raise UsageError(
            f"--tensor-parallel {tp} does not divide {config.intermediate_size // divisor} rows of the MLP",
            where=config.architecture,
            fix=f"--tensor-parallel one of {_join_sizes(n for n in sizes if config.num_heads % n == 0)}",
        )
    rows = [("vocabulary", config.vocab_size % tp, f"a vocabulary of {config.vocab_size}")]
    rows.append(("kvReplication", config.num_kv_heads < tp, f"{config.num_kv_heads} KV heads"))
    for key, is_violated, size in rows:
        if is_violated and key in row:
            sizes = _list_working_sizes(config, mapping.expert_parallel)
            raise UsageError(
                f"--tensor-parallel {tp} with {size}: {row[key]}",
                where=config.architecture,
                fix=f"--tensor-parallel one of {_join_sizes(sizes)}",
            )


def check_node_sizes(mapping: CheckpointMapping) -> None:
    """Refuse ranks that do not fill nodes of ``gpus_per_node`` GPUs; the error lists sizes that would.

    Raises:
        UsageError: the ranks do not fill nodes, or ``gpus_per_node`` is out of range.
    """
    world, gpus_per_node = mapping.world_size, mapping.gpus_per_node
    if not 1 <= gpus_per_node <= MOST_GPUS:
        raise UsageError(
            f"--gpus-per-node {gpus_per_node} is not from 1 to {MOST_GPUS}",
            fix=f"pass the number of GPUs of a serving node, for instance {default_gpus_per_node()}",
        )
    if not mapping.fills_nodes:
        node_sizes = [n for n in _list_divisors(world) if n < world]
        whole_nodes = world // gpus_per_node
        raise UsageError(
            f"--gpus-per-node {gpus_per_node} with {world} ranks: "
            f"they neither fit on one node nor fill several (at most {gpus_per_node}, or a multiple of it)",
            where=f"--tensor-parallel {mapping.tensor_parallel} --pipeline-parallel "
            f"{mapping.pipeline_parallel}",
            fix=f"--gpus-per-node {world} for one node, {_join_sizes(node_sizes)} for several; "
            f"or {whole_nodes * gpus_per_node} or {(whole_nodes + 1) * gpus_per_node} ranks",
        )
