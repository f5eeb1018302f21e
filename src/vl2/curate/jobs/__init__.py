"""Jobs that make or judge records by asking a model at an OpenAI-compatible endpoint."""
