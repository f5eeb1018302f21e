"""Speed and memory: what this machine allows, what a model reaches of it, and how a peer does beside it."""
