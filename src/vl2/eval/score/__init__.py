"""Scoring rules as pure functions; each names the harness that it follows.

Golden: tests/golden/scorers, the scores of two public harnesses for the same answers.
"""

# Increment this when the score of any answer changes: runs of different versions are not compared.
SCORER_VERSION = 2
