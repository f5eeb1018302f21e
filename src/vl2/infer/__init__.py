"""Inference: sampling, generation for many requests, replies with boxes, and chat sessions."""
