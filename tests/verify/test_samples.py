"""The publisher's samples: pictures by their ids, answers by exactness, boxes and words."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from vl2.process.messages import to_turns
from vl2.verify import run_checks, samples
from vl2.verify.samples import SAMPLES, PublishedSample, check_answer, compare_answers

from .conftest import git_id

GIRAFFE, THREE_OF_TINY, THREE_OF_SMALL, GIRAFFE_OF_BASE = SAMPLES


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (50, 40), color).save(file, "PNG")
    return file.getvalue()


RED, BLUE = picture("red"), picture("blue")


@pytest.fixture
def published(monkeypatch, picture_server):
    """Let the publisher print an answer of the built-in size, about a picture on a server of ours."""
    sample = PublishedSample(
        name="a red picture", size="nano", prompt="<image>\nWhich color?", pictures=("red.png",), answer="It is red."
    )
    monkeypatch.setattr(samples, "SAMPLES", (sample,))
    monkeypatch.setattr(samples, "BLOB_IDS", {"red.png": git_id(RED)})
    monkeypatch.setattr(samples, "PICTURES_URL", picture_server.url)
    monkeypatch.setattr(samples, "TIMEOUT_S", 10.0)
    # What is slow here and not about samples.
    monkeypatch.setattr(run_checks.agreement, "check_agreement", lambda *_: [])
    monkeypatch.setattr(run_checks, "_compare_with_float32", lambda *_, **__: [])
    picture_server.files["red.png"] = RED
    return picture_server


@pytest.fixture
def asked(monkeypatch):
    """Record what the model is asked, and let it answer what a test says."""
    seen = {"answer": "It is red.", "pictures": []}

    def ask(vlm, sample, found):
        seen["pictures"].append(found)
        return seen["answer"]

    monkeypatch.setattr(run_checks, "_ask", ask)
    return seen


def test_the_id_of_a_picture_is_gits():
    # `printf 'hello\n' | git hash-object --stdin`
    assert samples.blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_picture_is_downloaded_checked_and_asked_about(verify, correct, published, asked):
    report = verify(correct)
    assert report.ran.code == 0
    assert asked["pictures"] == [[RED]]
    assert report.find("a red picture")["found"] == "same: the same text"
    assert published.asked == ["red.png"]


def test_a_random_model_gives_another_answer_and_fails(verify, correct, published):
    report = verify(correct)
    assert report.failed == ["a red picture"]
    assert report.find("a red picture")["found"].startswith("differs: ")
    assert "published: It is red." in report.find("a red picture")["details"]
    assert report.ran.code == 1


def test_with_quantized_weights_another_answer_is_not_a_fault(verify, correct, published):
    report = verify(correct, "--weights", "int8")
    assert report.page["held"] == "int8, the rest in bfloat16"
    assert report.verdict("a red picture") == "not checked"
    assert "held in int8" in report.find("a red picture")["found"]
    assert report.ran.code == 0


def test_a_picture_with_other_bytes_is_named_and_not_shown_to_the_model(verify, correct, published, asked):
    published.files["red.png"] = BLUE
    report = verify(correct)
    found = report.find("a red picture")
    assert found["verdict"] == "not checked"
    assert found["found"] == f"red.png is not the published picture: its blob id is {git_id(BLUE)}, not {git_id(RED)}"
    assert asked["pictures"] == []


def test_a_picture_that_is_gone_is_not_checked_with_the_reason(verify, correct, published, asked):
    published.files.clear()
    report = verify(correct)
    assert report.verdict("a red picture") == "not checked"
    assert "it answers 404" in report.find("a red picture")["found"]
    assert report.ran.code == 0


def test_a_network_that_is_down_is_not_checked_with_the_reason(verify, correct, published, asked, monkeypatch):
    monkeypatch.setattr(samples, "PICTURES_URL", "http://127.0.0.1:9/images")  # the discard port: nothing listens
    report = verify(correct)
    assert report.verdict("a red picture") == "not checked"
    assert "cannot fetch" in report.find("a red picture")["found"]


def test_without_downloads_nothing_is_asked_of_the_network(verify, correct, published, asked):
    report = verify(correct, "--no-download")
    assert report.verdict("a red picture") == "not checked"
    assert "--no-download" in report.find("a red picture")["found"]
    assert published.asked == []


def test_pictures_come_from_a_folder(verify, correct, published, asked, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    report = verify(correct, "--pictures", folder, "--no-download")
    assert "red.png is not in the pictures folder" in report.find("a red picture")["found"]
    (folder / "red.png").write_bytes(RED)
    assert verify(correct, "--pictures", folder, "--no-download").verdict("a red picture") == "pass"
    assert published.asked == []


def test_a_pictures_folder_that_is_none_is_refused_at_once(vl2, nothing_checked):
    ran = vl2("verify", "nano", "--pictures", "/no/such/folder")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "vl2: --pictures must be a folder, got /no/such/folder\n"


@pytest.fixture
def nothing_checked(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was checked")

    monkeypatch.setattr("vl2.verify.run_checks.verify", refuse)


def test_a_released_prompt_is_asked_in_the_released_form_with_its_pictures(monkeypatch):
    """The messages are those of the publisher's README, whatever the model answers."""

    class Asked:
        limits = run_checks.Limits(max_context=100)

        def generate(self, messages, **options):
            self.seen = (messages, options, self.limits.prefill_chunk)
            return type("Reply", (), {"text": "a"})

    vlm = Asked()
    assert run_checks._ask(vlm, THREE_OF_SMALL, [RED, BLUE, RED]) == "a"
    turns, options, chunk = vlm.seen
    assert to_turns(turns) == to_turns(
        [{"role": "<|User|>", "content": THREE_OF_SMALL.prompt, "images": [RED, BLUE, RED]}]
    )
    assert options == {"max_new_tokens": 512}  # greedy is the default
    assert (chunk, vlm.limits.prefill_chunk) == (512, None)


def test_every_sample_has_a_picture_for_each_place_and_an_id_for_each_picture():
    for sample in SAMPLES:
        assert sample.prompt.count("<image>") == len(sample.pictures)
        assert set(sample.pictures) <= set(samples.BLOB_IDS)


@pytest.mark.parametrize(
    ("box", "likeness"),
    [
        ("[[580, 270, 999, 900]]", "same"),
        ("[[580, 270, 999, 904]]", "close"),  # as others report
        ("[[570, 280, 989, 910]]", "close"),
        ("[[569, 270, 999, 900]]", "differs"),
        ("[[580, 270, 999, 911]]", "differs"),
        ("[[580, 270, 999, 900], [1, 2, 3, 4]]", "differs"),
        ("[[580, 270, 999]]", "differs"),
        ("", "differs"),
    ],
)
def test_boxes_are_compared_number_by_number(box, likeness):
    answer = f"<|ref|>The giraffe at the back.<|/ref|><|det|>{box}<|/det|>"
    comparison = compare_answers(answer, GIRAFFE.answer)
    assert comparison.likeness == likeness
    check = check_answer(GIRAFFE, answer, weights="bfloat16")
    assert check.verdict == ("fail" if likeness == "differs" else "pass")


def test_a_box_with_another_label_differs():
    answer = "<|ref|>The giraffe in front.<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|>"
    assert compare_answers(answer, GIRAFFE.answer).likeness == "differs"


def test_text_is_compared_by_words_and_the_first_difference_is_shown():
    close = THREE_OF_TINY.answer.replace("orange", "bright orange")
    comparison = compare_answers(close, THREE_OF_TINY.answer)
    assert comparison.likeness == "close"
    assert "the first difference is word 14: 'bright', published 'orange'" in comparison.explanation
    other = "The images show a dog, a cat and a very small bird that sits on a fence in the evening sun."
    assert compare_answers(other, THREE_OF_TINY.answer).likeness == "differs"
    assert compare_answers("", THREE_OF_TINY.answer).likeness == "differs"
    cut = " ".join(THREE_OF_TINY.answer.split()[:-1])
    assert "published 'marbling.'" in compare_answers(cut, THREE_OF_TINY.answer).explanation


def test_the_small_sample_may_differ_because_published_angles_were_rounded():
    check = check_answer(THREE_OF_SMALL, "Something else.", weights="bfloat16")
    assert check.verdict == "not checked"
    assert "not yet a fault: the published answer was made by code that rounds the rotary angles" in check.found
    assert check_answer(THREE_OF_TINY, "Something else.", weights="bfloat16").verdict == "fail"
    assert check_answer(THREE_OF_SMALL, THREE_OF_SMALL.answer, weights="bfloat16").verdict == "pass"


def test_of_base_the_answer_is_shown_without_a_verdict():
    check = check_answer(GIRAFFE_OF_BASE, "<|det|>", weights="bfloat16")
    assert check.verdict == "not checked"
    assert "answered:  <|det|>" in check.details
