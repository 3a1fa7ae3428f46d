"""Stand-in for what the LLM API is given: the contract's names, and no other."""

from .standin import contract


class _Checked:
    """Takes the names of a section of the contract."""

    section = ""

    def __init__(self, **fields):
        rows = contract("llm_arguments")[self.section]
        defaults = rows if isinstance(rows, dict) else dict.fromkeys(rows)
        if unknown := set(fields) - set(defaults):
            raise TypeError(f"{type(self).__name__} got unexpected keyword arguments {sorted(unknown)}")
        self.__dict__.update(defaults, **fields)


class SamplingParams(_Checked):
    section = "sampling_params"

    def __init__(self, **fields):
        super().__init__(**fields)
        greedy = self.top_k in (None, 1) and self.top_p in (None, 0.0) and not self.use_beam_search
        if greedy and (self.best_of or self.n) > 1:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns")
        if not greedy or self.use_beam_search:
            raise NotImplementedError("stand-in: greedy only")


class KvCacheConfig(_Checked):
    section = "kv_cache_config"

    def __init__(self, **fields):
        super().__init__(**{"enable_block_reuse": True, **fields})
