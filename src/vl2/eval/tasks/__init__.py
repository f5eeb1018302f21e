"""One file per benchmark: reading its data, its prompts by protocol, and the scoring of answers."""
