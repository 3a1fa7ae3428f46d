"""Whether a model fits a GPU, and what building its engine takes: from headers alone."""
