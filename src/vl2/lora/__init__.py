"""Low-rank adapters (LoRA) for a trained model: attach, merge and remove them, and read and write PEFT's format."""
