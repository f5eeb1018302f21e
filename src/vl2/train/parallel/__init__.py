"""Layouts over many ranks: experts, layers and tiles on the ranks that have room or time for them."""
