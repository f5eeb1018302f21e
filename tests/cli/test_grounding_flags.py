"""`locate --like`, `--constrained` and `ask --json-schema`: the same as in Python, and bad input in one line."""

from __future__ import annotations

import json

import jsonschema
import pytest

from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.prompts import locate_like_prompt, mark_object

from .test_answers import FLAGS, PHOTO, WIDE, reply_to

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


def test_like_searches_the_image_for_what_is_marked_in_another(vl2):
    ran = vl2("locate", "-i", WIDE, "--like", PHOTO, "--box", "10,20,200,150", "--json", *FLAGS)
    marked = mark_object(PHOTO, (10, 20, 200, 150))
    assert ran.code == 0
    assert json.loads(ran.out) == reply_to(locate_like_prompt(), [marked, WIDE]).to_dict()


def test_constrained_boxes_are_asked_for(vl2):
    flags = (*FLAGS, "--json", "--temperature", "2", "--seed", "5", "--constrained")
    prompt = {"locate": "<|ref|>a dog<|/ref|>.", "describe": "Can you describe this image in detail?"}
    for command in (("locate", "a dog"), ("describe",)):
        ran = vl2(*command, "-i", PHOTO, *flags)
        same = reply_to(prompt[command[0]], [PHOTO], temperature=2.0, seed=5, constraint=WellFormedBoxes())
        assert (ran.code, json.loads(ran.out)) == (0, same.to_dict())


def test_an_answer_fits_the_schema_in_a_file(vl2, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    ran = vl2("ask", "how many?", *FLAGS, "--json-schema", path)
    assert ran.code == 0
    jsonschema.validate(json.loads(ran.out), SCHEMA)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("locate", "-i", PHOTO), "the query is empty: say what to locate"),
        (("locate", "a dog", " ", "-i", PHOTO), "the query is empty: say what to locate"),
        (("locate", "-i", PHOTO, "--like", PHOTO), "--like and --box belong together"),
        (("locate", "-i", PHOTO, "--box", "1,2,3,4"), "--like and --box belong together"),
        (("locate", "a dog", "-i", PHOTO, "--like", PHOTO, "--box", "1,2,3,4"), "got both"),
        (("locate", "-i", PHOTO, "--like", PHOTO, "--box", "1,2,x,4"), "--box must be four numbers"),
        (("locate", "-i", PHOTO, "--like", PHOTO, "--box", "1,2,3,4000"), "a box must lie in the 640 x 480 image"),
        (("locate", "-i", PHOTO, "--like", "no.png", "--box", "1,2,3,4"), "there is no such file"),
        (("ask", "hi", "--json-schema", "no.json"), "cannot read no.json: No such file"),
        (("ask", "hi", "--json-schema", str(PHOTO)), "is not JSON"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(vl2, arguments, says):
    ran = vl2(*arguments)
    assert says in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
