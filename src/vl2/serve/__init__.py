"""An OpenAI-compatible server: requests checked and bounded, answered by the engine here or by vLLM."""
