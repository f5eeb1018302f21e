"""Training: stages, one step, and the ranks that take it together."""
