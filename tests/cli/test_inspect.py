"""`vl2 inspect`: tokens of an image, size of a checkpoint. No weight is loaded.

Golden: tests/golden/reference/processor/resolutions.json, and the parameter totals of the released files.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence

import pytest
from PIL import Image

from vl2.checkpoint.resolve import built_in_folder
from vl2.checkpoint.safetensors_file import read_header
from vl2.checkpoint.write import quantize_checkpoint

from ..reference import CHECKPOINTS, IMAGES, REFERENCE

TINY = CHECKPOINTS / "tiny"
RESOLUTIONS = json.loads((REFERENCE / "processor" / "resolutions.json").read_text(encoding="utf-8"))
# A flat picture costs nothing to make or decode up to here; the rule itself is tested on every case elsewhere.
CASES = [case for case in RESOLUTIONS["cases"] if case["size"][0] * case["size"][1] < 4_000_000]


def flat_picture(size: Sequence[int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_the_figures_of_an_image_are_those_of_the_released_processor(vl2):
    assert len(CASES) > 60
    for case in CASES:
        ran = vl2("inspect", "-", "-m", TINY, "--json", stdin=flat_picture(case["size"]))
        assert (ran.code, ran.err) == (0, "")
        report = json.loads(ran.out)
        grid = case["spatial_crop"]
        assert report["size"] == case["size"]
        assert report["canvas"] == case["best"]
        assert report["grid"] == grid
        assert report["visual_tokens"] == case["image_tokens"]
        # An image on one tile is encoded once; the released code encodes it twice.
        assert report["tiles_encoded"] == (1 if grid == [1, 1] else case["tiles_with_global"])
        assert report["resized"] == case["local_pad"]["resized"]
        assert report["offset"] == case["local_pad"]["offset"]
        assert report["global_tokens"] + 1 + report["local_tokens"] == report["visual_tokens"]


def test_an_image_is_reported_in_words_and_as_a_diagram(vl2):
    ran = vl2("inspect", IMAGES / "photo640x480.png", "-m", TINY)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[:4] == [
        "image   640 x 480 px",
        "canvas  768 x 768 px, the picture 768 x 576 at (0, 96)",
        "tiles   5 of 384 px: 2 x 2 local tiles + 1 global view",
        "tokens  1023: 210 global + 1 separator + 812 local",
    ]
    assert lines[5] == "+------+------+"
    assert len({len(line) for line in lines[5:]}) == 1


def test_the_tiling_flags_change_the_cut(vl2):
    wide = IMAGES / "wide1500x400.png"
    for flags, tokens in (
        ((), 1807),
        (("--tiling", "budget:421"), 421),
        (("--tiling", "per-image"), 1807),
        (("--max-tiles", "1"), 421),
    ):
        assert json.loads(vl2("inspect", wide, "-m", TINY, "--json", *flags).out)["visual_tokens"] == tokens


def test_the_picture_shows_the_canvas_with_its_tiles(vl2, tmp_path):
    path = tmp_path / "tiles.png"
    ran = vl2("inspect", IMAGES / "photo640x480.png", "-m", TINY, "--draw", path)
    assert (ran.code, ran.err) == (0, f"vl2: drawn to {path}\n")
    with Image.open(path) as picture:
        assert picture.width == 768
        assert picture.height > 768  # the canvas and a line of figures


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 60000), (60000, 1)])
def test_a_picture_too_thin_to_be_seen_is_said_to_be_and_drawn_as_padding(vl2, tmp_path, size):
    path = tmp_path / "tiles.png"
    ran = vl2("inspect", "-", "--draw", path, stdin=flat_picture(size))
    assert (ran.code, ran.err) == (0, f"vl2: drawn to {path}\n")
    assert ran.out.splitlines()[2] == "note    the picture is too thin for this model: nothing of it is visible"
    assert "#" not in ran.out
    assert path.is_file()
    assert "too thin" not in vl2("inspect", IMAGES / "dot1x1.png").out


def test_the_image_scale_is_shown_where_it_is_not_one(vl2, tmp_path):
    picture = flat_picture((320, 240))
    lines = vl2("inspect", "-", stdin=picture).out.splitlines()
    assert lines[0] == "image   320 x 240 px, tiled like 480 x 360 px (image scale 1.5)"
    assert lines[2] == "tiles   10 of 168 px: 3 x 3 local tiles + 1 global view"
    assert json.loads(vl2("inspect", "-", "--json", stdin=picture).out)["image_scale"] == 1.5
    told = "image scale 1.5: pictures are tiled as if they were so many times as large"
    shutil.copytree(built_in_folder(), tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    for target in ("nano", tmp_path / "copy"):
        assert told in vl2("inspect", target).out.splitlines()
        assert json.loads(vl2("inspect", target, "--json").out)["image_scale"] == 1.5
    for target in ("tiny", TINY):
        assert "image scale" not in vl2("inspect", target).out
        assert json.loads(vl2("inspect", target, "--json").out)["image_scale"] == 1


def test_a_built_in_image_report_works_without_a_model_named(vl2):
    ran = vl2("inspect", IMAGES / "dot1x1.png", "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["grid"] == [1, 1]


@pytest.mark.parametrize(
    ("name", "total", "language_active"),
    [
        ("tiny", 3_370_501_440, 0.574e9),
        ("small", 16_148_349_504, 2.451e9),
        ("base", 27_480_132_160 + 29 * 72, 4.124e9),  # with the expert biases
    ],
)
def test_the_parameters_of_a_released_size_are_those_of_its_files(vl2, name, total, language_active):
    ran = vl2("inspect", name, "--json")
    assert (ran.code, ran.err) == (0, "")
    size = json.loads(ran.out)
    assert size["parameters"] == total
    assert size["language_active"] == pytest.approx(language_active, rel=1e-3)
    assert size["parameters"] == size["vision"] + size["attention_pool"] + size["projector"] + size["language"]
    plans = {plan["weights"]: plan for plan in size["plans"]}
    biases = 29 * 72 if name == "base" else 0  # kept in float32
    assert plans["bfloat16"]["weight_bytes"] == 2 * total + 2 * biases
    assert sum(part["parameters"] for part in size["parts"].values()) == total
    for form, plan in plans.items():
        assert plan["weight_bytes"] == sum(part["bytes"][form] for part in size["parts"].values())


def test_a_checkpoint_folder_is_measured_by_its_configuration_alone(vl2, tmp_path):
    shutil.copy(TINY / "config.json", tmp_path / "config.json")
    size = json.loads(vl2("inspect", tmp_path, "--json").out)
    assert size["layers"] == 4
    assert size["vocabulary"] == 2048


@pytest.mark.parametrize("target", ["nano", "tiny", TINY])
def test_a_size_is_printed_as_tables(vl2, target):
    ran = vl2("inspect", target)
    assert (ran.code, ran.err) == (0, "")
    assert "language model" in ran.out
    assert "bfloat16" in ran.out
    assert "all       with 400.0 MB for the program and 201.3 MB that is kept of images and prompts" in ran.out
    assert max(map(len, ran.out.splitlines())) < 100


def test_the_plan_of_a_quantized_folder_is_its_files_to_the_byte(vl2, tmp_path):
    out = tmp_path / "int4"
    quantize_checkpoint(TINY, out)
    told = json.loads(vl2("inspect", out, "--json").out)
    (plan,) = told["plans"]
    tensors = [tensor for file in out.glob("*.safetensors") for tensor in read_header(file).values()]
    assert plan["weights"] == told["advised"] == "int4"
    assert plan["weight_bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert told["advice"] == f"`vl2 ask ... --model {out}`: all of it fits"


@pytest.mark.parametrize(
    ("bound", "verdicts", "advice"),
    [
        ("200GB", ["fits"] * 4, "`vl2 ask ... --model base`: all of it fits"),
        ("60GB", ["too large", "fits", "fits", "fits"], "`vl2 ask ... --model base`"),
        ("30GB", ["too large", "too large", "fits", "fits"], "`vl2 quantize base OUT --weights int8`"),
        ("24GB", ["too large", "too large", "paged", "fits"], "`vl2 quantize base OUT --weights int4`"),
        ("8GB", ["too large", "too large", "paged", "paged"], "--model OUT --memory 8.0GB`: 29% of the experts"),
        ("3GB", ["too large"] * 4, "too large for 3.0 GB: it needs 5.1 GB at least"),
    ],
)
def test_a_bound_of_memory_decides_the_advice(vl2, bound, verdicts, advice):
    told = json.loads(vl2("inspect", "base", "--memory", bound, "--json").out)
    assert [plan["verdict"] for plan in told["plans"]] == verdicts
    assert advice in told["advice"]


@pytest.mark.parametrize(
    ("weights", "command"),
    [
        ("float32", "`vl2 ask ... --model {}`: all of it fits"),
        ("bfloat16", "`vl2 ask ... --model {} --dtype bfloat16`: all of it fits"),
    ],
)
def test_the_advice_for_a_float32_folder_is_what_its_command_loads(vl2, tmp_path, weights, command):
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8")) | {"torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plans = json.loads(vl2("inspect", tmp_path, "--json").out)["plans"]
    (bound,) = (plan["total"] for plan in plans if plan["weights"] == weights)
    told = json.loads(vl2("inspect", tmp_path, "--memory", f"{bound}B", "--json").out)
    assert told["advised"] == weights
    assert command.format(tmp_path) in told["advice"]


def test_the_context_decides_the_cache(vl2):
    short, long = (
        json.loads(vl2("inspect", "small", "--context", context, "--json").out)["plans"][1] for context in ("1", "1000")
    )
    assert short["cache"] == 27 * (512 + 64) * 2
    assert long["cache"] == 1000 * short["cache"]
    assert long["activations"] >= short["activations"]


def test_a_cache_in_int8_is_planned_with_a_plain_layer_for_reading(vl2):
    told, int8 = (
        json.loads(vl2("inspect", "tiny", "--json", "--memory", "100GB", *more).out)
        for more in ((), ("--cache", "int8"))
    )
    plain_bytes, int8_bytes = 12 * 2 * 1280 * 2, 12 * 2 * (1280 + 10 * 4)
    assert told["cache_bytes_per_token"] == {"float32": 2 * plain_bytes, "bfloat16": plain_bytes, "int8": int8_bytes}
    assert (told["cache"], int8["cache"]) == ("auto", "int8")
    assert told["plans"][1]["cache"] == 4096 * plain_bytes
    assert int8["plans"][1]["cache"] == 4096 * int8_bytes
    assert int8["plans"][1]["activations"] == told["plans"][1]["activations"] + 4096 * plain_bytes // 12
    assert "--cache int8" in int8["advice"]
    assert "--cache" not in told["advice"]
    assert "int8 cache," in vl2("inspect", "tiny", "--cache", "int8").out  # of a table, whose cells wrap


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tiny", "--context", "0"), "--context must be at least 1 token, got 0"),
        (("tiny", "--memory", "lots"), "a size is a number with a unit"),
        ((IMAGES / "dot1x1.png", "--memory", "8GB"), "--context, --memory and --cache are for checkpoints"),
        ((IMAGES / "dot1x1.png", "--cache", "int8"), "--context, --memory and --cache are for checkpoints"),
        (("tiny", "--cache", "int4"), "cache must be auto or int8, got int4"),
        (
            ("tinyy",),
            "no file or folder tinyy: give an image, a checkpoint folder, a hub id, or nano, tiny, small, base",
        ),
        (("random:tiny", "--context", "2048"), "no file or folder random:tiny"),
        (("no/such/picture.png",), "cannot read image no/such/picture.png: there is no such file"),
    ],
)
def test_wrong_plans_are_refused(vl2, arguments, says):
    ran = vl2("inspect", *arguments)
    assert ran.code == 1
    assert says in ran.err
    assert ran.err.count("\n") == 1
