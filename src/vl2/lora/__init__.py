"""Low-rank adapters on a finished model: add, merge, take off, and files in PEFT's format."""
