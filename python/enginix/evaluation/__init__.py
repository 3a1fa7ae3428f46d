"""Quality gates: checks of an engine against the model that it was made of. They can fail a build.

They fail closed: everything that keeps a gate from an answer is a failure of the gate, be it an exception, a
missing reference, NaN, or no prompts. ``enginix.evaluation.judgement.run`` runs them; each gate is a module of its own.
"""
