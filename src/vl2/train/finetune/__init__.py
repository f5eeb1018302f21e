"""Fine-tuning on a person's own data: check and split it, size the run, train, score before and after."""
