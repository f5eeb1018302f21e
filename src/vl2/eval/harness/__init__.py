"""Plug-ins for lmms-eval and VLMEvalKit. Only these files import the harnesses."""
