"""Tests of the built-in model on pictures that its training's generators do not draw.

    pip install -r experiments/nano/held_out/requirements.txt
    python -m experiments.nano.held_out MODEL --out FOLDER [--limit N] [--only TASK ...]

What is here has its own words, phrasings, fonts and drawing. It takes nothing from `vl2.synth` or from what else is in
`experiments.nano`, but for the rule of what is kept back (`splits`), the names of shapes and colors, which are the
classes themselves, and the prompt that asks for a box. `tests/experiments/test_held_out_apart.py` holds that.
"""
