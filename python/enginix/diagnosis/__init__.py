"""What this machine has of what the stages need, each with a way to mend it."""
