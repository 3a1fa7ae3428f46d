"""Starting Triton on a repository, knowing that it answers, and stopping it cleanly."""
