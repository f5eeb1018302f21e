"""What the scripts share: where the recorder is, a picture, a tool. Run by the interpreter that has the programs."""

import os
import sys
import traceback
import urllib.request

RECORDER = sys.argv[1]
API = f"{RECORDER}/v1"
PICTURE_DATA = (
    "iVBORw0KGgoAAAANSUhEUgAAADAAAAAgCAIAAADbtmxLAAAAgklEQVR42u2WwQ7AIAhDtfH/f9ldd9hha0uGSXtUkScoMvfeo5MwmilAAVK1GKM5"
    "HwZNr3UZUO5TMhY8NJ/WeIDee9KYUOJDYELV7izTcXVIuRCUbSp1gAL0N5DyWVK2J6aMCxIbWpTsLiQafh9ajwbzueWOcTG5aNRTW32nUgeoRBc17iFD"
    "GK+9LAAAAABJRU5ErkJggg=="
)
PICTURE = f"data:image/png;base64,{PICTURE_DATA}"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
os.environ["OPENAI_API_KEY"] = "none"
os.environ["OPENAI_BASE_URL"] = API


def scenario(name: str, work) -> None:
    """Tell the recorder what comes, do it, and print what came of it."""
    urllib.request.urlopen(urllib.request.Request(f"{RECORDER}/scenario", data=name.encode(), method="POST"))
    try:
        print(f"{name}: {str(work())[:160]!r}", flush=True)
    except Exception as error:
        print(f"{name} FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if os.environ.get("TRACE"):
            traceback.print_exc()
