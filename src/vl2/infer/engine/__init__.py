"""The engine runs many requests on one model: a queue, a scheduler that works in small steps, and its thread."""
