"""Try a new generation of a server beside the running one, before that one is stopped."""
