"""A new generation of a server is tried beside the running one, before anything is stopped."""
