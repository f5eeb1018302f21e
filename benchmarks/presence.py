"""Does a box say that a thing is there? Drawn scenes of shapes, asked for what is and what is not in them.

    vl2 serve &
    python benchmarks/presence.py http://127.0.0.1:8000 [--scenes 60]

Each scene is asked for the box of a shape that is there, of one that is there in another color only, of one that is
not there, and of a thing that is no shape; and whether each is there, in the words of the page. The figures of
docs/web.md and docs/decisions.md: answers with a box, answers of yes and no, and how well the mean log-probability of a
box's digits tells the first kind from the others (area under the curve; 0.5 is chance). The same command gives the same
figures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import urllib.request
from collections import defaultdict
from typing import Any

from PIL import Image

from vl2.infer.prompts import locate_prompt
from vl2.synth.nouns import article
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.scene import things

OUTSIDE = {
    "en": ("red mug", "dog", "traffic light", "man in a hat", "laptop", "banana", "clock", "person", "chair"),
    "zh": ("红色的杯子", "狗", "红绿灯", "戴帽子的人", "笔记本电脑", "香蕉", "钟", "椅子", "书"),
}
YES, NO = ("Yes.", "有。"), ("No.", "没有。")


def ask(url: str, image: Image.Image, text: str) -> dict[str, Any]:
    """Return the choice of a chat about one picture, with the log-probability of each token."""
    png = io.BytesIO()
    image.save(png, "PNG")
    picture = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"},
    }
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": [picture, {"type": "text", "text": text}]}],
        "max_tokens": 128, "temperature": 0, "max_repeats": 8, "logprobs": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]


def draw(rng: random.Random) -> tuple[Image.Image, str, dict[str, str]]:
    """Return a scene, a language, and what to ask for by kind; a kind that the scene does not allow is left out."""
    source = PrimerScene()
    scene, language = source.compose(rng), rng.choice(("en", "zh"))
    missing = [kind for kind in things(source.kinds()) if not scene.boxes(language, kind.full_name(language))]
    other_color = [kind for kind in missing if scene.boxes(language, kind.name(language))]
    absent = [kind for kind in missing if kind not in other_color]
    asked = {"there": rng.choice(scene.kinds()).full_name(language)}
    if other_color:
        asked["in another color"] = rng.choice(other_color).full_name(language)
    return (
        scene.image,
        language,
        asked
        | {
            "not there": rng.choice(absent).full_name(language),
            "no shape": rng.choice(OUTSIDE[language]),
        },
    )


def area_under_curve(high: list[float], low: list[float]) -> float:
    return sum((a > b) + 0.5 * (a == b) for a in high for b in low) / (len(high) * len(low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--scenes", type=int, default=60)
    args = parser.parse_args()
    rng = random.Random(20261128)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    digits: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.scenes):
        image, language, asked = draw(rng)
        for kind, name in asked.items():
            located = ask(args.url, image, locate_prompt(name))
            told = [entry["logprob"] for entry in located["logprobs"]["content"] if entry["token"].isdigit()]
            if located["message"].get("boxes"):
                counts[kind]["box"] += 1
                digits[kind].append(sum(told) / len(told))
            question = f"图中有{name}吗？" if language == "zh" else f"Is there {article(name)} in the image?"
            answer = ask(args.url, image, question)["message"]["content"].strip()
            counts[kind]["yes"] += answer in YES
            counts[kind]["no"] += answer in NO
            counts[kind]["asked"] += 1
    for kind, found in counts.items():
        area = f"{area_under_curve(digits['there'], digits[kind]):.2f}" if kind != "there" and digits[kind] else "-"
        print(
            f"{kind:18} asked {found['asked']}, box {found['box']}, yes {found['yes']}, no {found['no']}, area {area}"
        )


if __name__ == "__main__":
    main()
