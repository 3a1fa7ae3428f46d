"""Quality gates: checks of an engine against the model that it was made of. They can fail a build.

They fail closed: a gate that cannot be decided has failed, be the cause an exception, a missing reference,
NaN, or no prompts. ``judgement.run`` and ``judgement.judge`` judge a checkpoint on the reference executor,
``engine_judgement.judge_answers`` judges the answers of an engine's own runtime.
"""
