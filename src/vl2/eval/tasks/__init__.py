"""One file per benchmark: its prompts under each protocol, and how an answer is read."""
