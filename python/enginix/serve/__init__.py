"""Start Triton on a repository, wait until it answers, and stop it cleanly."""
