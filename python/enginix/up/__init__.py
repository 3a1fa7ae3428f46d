"""From a model's name to an endpoint: the stages, what they left, and the servers at the end."""
