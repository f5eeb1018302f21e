"""Jobs that rewrite or score records by sending requests to a model at an OpenAI-compatible endpoint."""
