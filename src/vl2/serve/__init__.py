"""An OpenAI-compatible HTTP server, which checks and bounds requests and answers them with our engine or with vLLM."""
