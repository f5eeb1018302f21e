"""The engine: many requests at once on one model. A queue, a scheduler that works in small steps, and its thread."""
