"""Compare artefacts in one table and one plot: for the terminal, as JSON, or as one offline page."""
