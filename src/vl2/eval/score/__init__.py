"""How answers are scored: one file per rule, pure functions, each naming the harness that it follows.

Golden: tests/golden/scorers, what two public harnesses gave for the same answers.
"""

# Raise it when the score of some answer changes: runs of two versions are not compared.
SCORER_VERSION = 2
