"""Requests that are wrong, too large, or meant to do harm, and their answers: docs/hostile-requests.md lists them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .hostile_pictures import (
    flat,
    flat_png,
    jpeg_of_scans,
    png_of_many_chunks,
    png_of_profile,
    png_of_text,
    tiff_of_large_tags,
)
from .pictures import data_url, example, png, user

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A request and its answer: the status, and what the one sentence must say."""

    name: str
    group: str
    status: int
    says: str  # part of the message
    path: str = CHAT
    method: str = "POST"
    body: Callable[[], bytes]
    content_type: str | None = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def _chat(**fields: Any) -> Callable[[], bytes]:
    return lambda: _encoded({"model": "nano", "messages": [user("Hello")], "max_tokens": 2, **fields})


def _image(make: Callable[[], str]) -> Callable[[], bytes]:
    return lambda: _encoded({"model": "nano", "messages": [user("Look", make())], "max_tokens": 2})


def _function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def _raw(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _case(group: str, name: str, says: str, body: Callable[[], bytes], status: int = 400, **fields: Any) -> Hostile:
    return Hostile(name=name, group=group, status=status, says=says, body=body, **fields)


def _url(url: str, says: str, name: str | None = None) -> Hostile:
    return _case("addresses", name or f"image at `{url}`", says, _image(lambda: url))


def _picture(
    name: str, says: str, make: Callable[[], bytes], media_type: str = "image/png", status: int = 400
) -> Hostile:
    return _case("pictures", name, says, _image(lambda: data_url(make(), media_type)), status)


def _huge_png(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


PRIVATE = "is not on the public internet"

ADDRESSES = [
    *(
        _url(url, PRIVATE)
        for url in (
            "http://127.0.0.1/",
            "http://127.0.0.1:22/",
            "https://127.0.0.1:8443/",
            "http://localhost/a.png",
            "http://LOCALHOST./a.png",
            "http://127.1/",
            "http://0/",
            "http://0.0.0.0/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://10.0.0.1/",
            "http://172.16.0.1/",
            "http://192.168.1.1/router.png",
            "http://169.254.169.254/latest/meta-data/",
            "http://100.64.0.1/",
            "http://198.18.0.1/",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://①②⑦.⓪.⓪.①/",
            "http://168.63.129.16/machine",
            "http://192.0.0.192/opc/v2/instance/",
            "http://100.100.100.200/latest/meta-data/",
            "http://[fd00:ec2::254]/latest/meta-data/",
            "http://[::ffff:169.254.169.254]/",
            "http://192.88.99.1/",
            "http://198.51.100.7/",
            "http://[fec0::1]/",
            "http://[3fff::1]/",
            "http://[5f00::1]/",
            "http://[2001:db8::1]/",
            "http://[2001::1]/",
            "http://[64:ff9b:1::1]/",
            "http://[::127.0.0.1]/",
            "http://[2a00:1450::5efe:10.0.0.1]/",
        )
    ),
    _url("http://internal.test/a.png", PRIVATE, "a name that resolves to 10.0.0.7"),
    _url("http://mixed.test/a.png", PRIVATE, "a name that resolves to a public address and to 127.0.0.1"),
    _url("http://redirects.test/to-private", PRIVATE, "a redirect to 192.168.0.1"),
    _url("http://redirects.test/to-file", "only http and https are allowed", "a redirect to file:///etc/passwd"),
    _url("http://redirects.test/round", "more than 3 redirects", "a redirect in a circle"),
    _url("http://redirects.test/large", "more than the limit", "an answer that says it has a terabyte"),
    _url("http://redirects.test/endless", "more than the limit", "an answer that never ends"),
    _url("http://redirects.test/slow", "no complete answer within", "an answer of one byte at a time"),
    _url("http://redirects.test/page", "not a picture", "a web page instead of a picture"),
    _url("http://slow-name.test/", "no complete answer within", "a name that takes forever to resolve"),
    _url("http://user:secret@example.com/a.png", "names and passwords are not allowed"),
    _url("http://nowhere.invalid/a.png", "its host is not known"),
    _url("http://example.com:99999/", "no usable URL"),
    _url("http:///a.png", "names no host"),
    _url("ftp://example.com/a.png", "only data, http, https and file URLs"),
    _url("gopher://127.0.0.1:6379/_FLUSHALL", "only data, http, https and file URLs"),
    _url("http://" + "a" * 300 + ".com/", "no usable URL", "a host name of 304 characters"),
    _url("http://" + "\u00e9" * 16_000 + "/", "no usable URL", "a host name of 16,000 letters that are not ASCII"),
    _url("http://example.com/" + "a" * 5_000_000, "the limit is 16384", "a URL of five million characters"),
]  # fmt: skip

FILES = [
    _case("files", f"file `{path}`", says, _image(lambda path=path: path))  # type: ignore[misc]
    for path, says in (
        ("/etc/passwd", "not inside an allowed folder"),
        ("file:///etc/passwd", "not inside an allowed folder"),
        ("../pyproject.toml", "not inside an allowed folder"),
        ("file:///%2e%2e/%2e%2e/etc/passwd", "not inside an allowed folder"),
        ("file://server/share/a.png", "a file of this machine"),
        ("link-out.png", "not inside an allowed folder"),
        ("a\0.png", "not inside an allowed folder"),
        ("no-such.png", "No such file"),
        (".", "no regular file"),
        ("pipe", "no regular file"),
        ("notes.txt", "not a picture"),
    )
] + [
    _case("files", name, "at most 4096 characters", _image(lambda path=path: path))  # type: ignore[misc]
    for name, path in (
        ("a path of 400,000 parts", "a/" * 400_000),
        ("a path that leads up 400,000 times", "a/../" * 400_000),
        ("a path of 2,000 parts", "a/" * 2000),
        ("a file name of 5,000 characters", "a" * 5000),
        ("a `file:` URL of 400,000 encoded parts", "file:///" + "%61/" * 400_000),
    )
]

PICTURES = [
    _picture("a PNG of 60,000 x 60,000 pixels in 200 bytes", "more than the limit of 3000000 pixels",
             lambda: _huge_png(60_000, 60_000)),
    _picture("a PNG of 2^31 - 1 pixels a side", "more than the limit", lambda: _huge_png(2**31 - 1, 2**31 - 1)),
    _picture("a picture without pixels", "header is damaged", lambda: _huge_png(0, 5)),
    _picture("a picture that is cut off", "damaged or cut off", lambda: png(64, 64)[:80]),
    _picture("an empty picture", "it is empty", lambda: b""),
    _picture("random bytes", "not a picture in a known format", lambda: bytes(range(256)) * 4),
    _picture("an SVG with a script", "it is an SVG drawing",
             lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "image/svg+xml"),
    _picture("a PDF", "it is a PDF file", lambda: b"%PDF-1.7\n1 0 obj", "application/pdf"),
    _picture("a PostScript program", "it is PostScript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\nquit"),
    _picture("a zip archive", "it is a ZIP archive", lambda: b"PK\3\4" + b"\0" * 100),
    _picture("a JPEG of 3,000 scans in 300 KB", "a JPEG of more than 50 scans", lambda: jpeg_of_scans(640, 480, 3000),
             "image/jpeg"),
    _picture("a PNG of 1 x 2,900,000 pixels", "of memory, more than the limit of 128 MiB",
             lambda: flat_png(1, 2_900_000)),
    _picture("a WebP of 2.9 million pixels, where 128 MiB may be used", "", lambda: flat("RGBA", 1700, 1700, "WEBP"),
             "image/webp", 200),
    _picture("a 16-bit gray PNG of 2.9 million pixels in 10 KB", "",
             lambda: flat_png(1700, 1700, depth=16, color_type=0), status=200),
    _picture("a PNG with 100 MB of compressed text", "damaged or cut off", lambda: png_of_text(100_000_000)),
    _picture("a PNG with a color profile of 100 MB", "damaged or cut off", lambda: png_of_profile(100_000_000)),
    _picture("a PNG of 20,000 chunks", "", lambda: png_of_many_chunks(20_000), status=200),
    _picture("a TIFF of 300 tags that hold the same megabyte", "",
             lambda: tiff_of_large_tags(300, 1_000_000), "image/tiff", 200),
    _picture("a picture of 3 MB where 2 MB are allowed", "larger than the limit",
             lambda: b"\x89PNG" + b"\0" * 3_000_000),
    _case("pictures", "a data URL without data", "must have a comma", _image(lambda: "data:image/png;base64")),
    _case("pictures", "a data URL of nothing but escapes, 3 MB", "not a picture in a known format",
          _image(lambda: "data:," + "%41" * 1_000_000)),
    _case("pictures", "a data URL of 7 MB", "larger than the limit", _image(lambda: "data:," + "%41" * 2_400_000)),
    _case("pictures", "base64 of nothing but blanks, 5 MB", "it is empty",
          _image(lambda: "data:;base64," + " " * 5_000_000)),
    _case("pictures", "base64 with a blank after each group, 2.5 MB", "not a picture in a known format",
          _image(lambda: "data:;base64," + "QUFB " * 500_000)),
    _case("pictures", "a data URL whose head never ends", "must have a comma",
          _image(lambda: "data:" + "image/png;" * 500_000 + ",x")),
    _case("pictures", "invalid base64", "its base64 data is damaged", _image(lambda: "data:;base64,%%%")),
    _case("pictures", "an empty address", "at least 1 character", _image(lambda: "")),
    _case("pictures", "more pictures than are allowed", "at most 4 images",
          lambda: _encoded({"model": "nano", "messages": [user("Look", *[example("line.png")] * 5)]})),
    _case("pictures", "pictures of more pixels together than are allowed", "more than",
          lambda: _encoded({"model": "nano", "messages": [user("Look", *[data_url(png(1000, 1000))] * 4)]})),
    _case("pictures", "a picture in a system message", "images belong in user messages",
          lambda: _encoded({"model": "nano", "messages": [{**user("x", example("line.png")), "role": "system"}]})),
]  # fmt: skip

BODIES = [
    _case("bodies", "no body", "not JSON", _raw(b"")),
    _case("bodies", "text that is not JSON", "not JSON", _raw(b"hello")),
    _case("bodies", "JSON that is cut off", "not JSON", _raw(b'{"model": "nano", "mess')),
    _case("bodies", "a list instead of an object", "valid dictionary", _raw(b"[]")),
    _case("bodies", "null", "valid dictionary", _raw(b"null")),
    _case("bodies", "NaN", "holds NaN", _raw(b'{"model": "nano", "temperature": NaN}')),
    _case("bodies", "Infinity", "holds -Infinity", _raw(b'{"model": "nano", "temperature": -Infinity}')),
    _case("bodies", "1e999", "too large a number", _raw(b'{"model": "nano", "temperature": 1e999}')),
    _case("bodies", "a number of 5,000 digits", "number of 5000 digits", _raw(b'{"seed": ' + b"9" * 5000 + b"}")),
    _case("bodies", "lists nested 100,000 deep", "nested more than 32 deep", _raw(b"[" * 100_000 + b"]" * 100_000)),
    _case("bodies", "objects nested 60 deep", "nested more than 32 deep", _raw(b'{"a":' * 60 + b"1" + b"}" * 60)),
    _case("bodies", "a million empty lists", "more than 200000 values", _raw(b"[" + b"[]," * 1_000_000 + b"[]]")),
    _case("bodies", "bytes that are not UTF-8", "not UTF-8", _raw(b'{"model": "\xff\xfe"}')),
    _case("bodies", "UTF-16", "not UTF-8", lambda: '{"model": "nano"}'.encode("utf-16")),
    _case("bodies", "half of a surrogate pair", "half of a surrogate pair",
          _raw(b'{"model": "nano", "messages": [{"role": "user", "content": "\\ud83d"}]}')),
    _case("bodies", "a key that is half of a surrogate pair", "half of a surrogate pair", _raw(b'{"\\udc00": 1}')),
    _case("bodies", "a text of 7.5 MB in Chinese", "the text has 2500000 characters",
          lambda: json.dumps({"model": "nano", "messages": [user("\u4e2d" * 2_500_000)]}, ensure_ascii=False).encode()),
    _case("bodies", "512 messages of 10,000 letters", "the text has 5120000 characters",
          _chat(messages=[user("ab" * 5000)] * 512)),
    _case("bodies", "prompts of a megabyte each", "the text has 1000000 characters",
          lambda: _encoded({"model": "nano", "prompt": ["x" * 1_000_000] * 7}), path="/v1/completions"),
    _case("bodies", "instructions of seven megabytes", "should have at most 4000000 characters",
          lambda: _encoded({"model": "nano", "input": "x", "instructions": "x" * 7_000_000}), path="/v1/responses"),
    _case("bodies", "a name that is a data URL of a megabyte", "as the name of a field",
          _chat(**{"data:," + "x" * 1_000_000: 1})),
    _case("bodies", "a body above the limit", "larger than the limit", _raw(b" " * 9_000_000), 413),
    _case("bodies", "a form", "must be application/json", _raw(b"model=nano"), 415,
          content_type="application/x-www-form-urlencoded"),
    _case("bodies", "text/plain, as a page of another site can send it", "must be application/json", _chat(), 415,
          content_type="text/plain"),
    _case("bodies", "no type", "must be application/json", _chat(), 415, content_type=None),
]  # fmt: skip

# Whether any text has all of these is found out by trying exponentially many states.
SLOW_SCHEMA = {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 17)]}

VALUES = [
    _case("values", "no model", "model: Field required", _raw(b'{"messages": []}')),
    _case("values", "another model", "is not served", _chat(model="gpt-4o"), 404),
    _case("values", "a model named by a path", "is not served", _chat(model="../../etc/passwd"), 404),
    _case("values", "a model that is a number", "model", _chat(model=7)),
    _case("values", "no messages", "messages", _chat(messages=[])),
    _case("values", "messages that are text", "messages", _chat(messages="hello")),
    _case("values", "a message that is null", "messages[0]", _chat(messages=[None])),
    _case("values", "an unknown role", "messages[0].role", _chat(messages=[{"role": "root", "content": "x"}])),
    _case("values", "content that is a number", "messages[0].content",
          _chat(messages=[{"role": "user", "content": 5}])),
    _case("values", "an unknown part", "messages[0].content[0]",
          _chat(messages=[{"role": "user", "content": [{"type": "exec", "exec": "ls"}]}])),
    _case("values", "600 messages", "at most 512 messages",
          _chat(messages=[{"role": "user", "content": "x"}] * 600)),
    _case("values", "an assistant before any user", "", _chat(messages=[{"role": "assistant", "content": "x"}]), 200),
    _case("values", "a prompt longer than the context", "maximum context length is 4096 tokens",
          _chat(messages=[user("word " * 9000)])),
    _case("values", "max_tokens of 0", "max_tokens", _chat(max_tokens=0)),
    _case("values", "max_tokens of 10^12", "max_tokens", _chat(max_tokens=10**12)),
    _case("values", "max_tokens in quotes", "max_tokens", _chat(max_tokens="10")),
    _case("values", "a negative temperature", "temperature", _chat(temperature=-1)),
    _case("values", "a temperature that is true", "temperature", _chat(temperature=True)),
    _case("values", "top_p of 0", "top_p", _chat(top_p=0)),
    _case("values", "10^9 answers", "n:", _chat(n=10**9)),
    _case("values", "100 answers", "at most 8 answers", _chat(n=100)),
    _case("values", "a seed of 2^70", "seed", _chat(seed=2**70)),
    *(
        _case("values", f"`{name}` of {value!r} with a temperature", "", _chat(**{"temperature": 1, name: value}), 200)
        for name, values in {
            "top_p": (1e-320, 5e-324),
            "min_p": (1e-320,),
            "temperature": (1e-320,),
            "repetition_penalty": (1e-320, 1e-308, 10),
        }.items()
        for value in values
    ),
    _case("values", "sizes of 2,000 images", "at most 1000 images",
          lambda: _encoded({"messages": [[{"width": 9, "height": 9}] * 1000] * 2}), path="/v1/images/tiles"),
    _case("values", "a user of 513 letters", "user: String should have at most 512 characters", _chat(user="u" * 513)),
    _case("values", "a safety identifier of 513 letters", "at most 512 characters", _chat(safety_identifier="u" * 513)),
    _case("values", "metadata with 17 names", "at most 16 items", _chat(metadata={str(n): "x" for n in range(17)})),
    _case("values", "metadata of 513 letters", "at most 512 characters", _chat(metadata={"x": "y" * 513})),
    _case("values", "a name of 65 letters in the metadata", "at most 64 characters", _chat(metadata={"x" * 65: "y"})),
    _case("values", "metadata of a megabyte, to be echoed", "at most 512 characters",
          lambda: _encoded({"model": "nano", "input": "x", "metadata": {"x": "y" * 1_000_000}}), path="/v1/responses"),
    _case("values", "50 stop texts", "stop", _chat(stop=["x"] * 50)),
    _case("values", "an empty stop text", "stop", _chat(stop="")),
    _case("values", "21 likeliest tokens", "top_logprobs", _chat(logprobs=True, top_logprobs=21)),
    _case("values", "an unknown field", "", _chat(run_as="root"), 200),
    _case("values", "a search of the web as tool", "", _chat(tools=[{"type": "web_search"}]), 200),
    _case("values", "a tool without a function", "function: Field required", _chat(tools=[{"type": "function"}])),
    _case("values", "a tool without a type", "a tool needs a type", _chat(tools=[{"function": {"name": "f"}}])),
    _case("values", "a function's name with a line break", "the name of a function", _chat(tools=[_function("a\nb")])),
    _case("values", "a function twice", "the function f is given twice", _chat(tools=[_function("f"), _function("f")])),
    _case("values", "129 functions", "at most 128 items", _chat(tools=[_function(f"f{i}") for i in range(129)])),
    _case("values", "functions of a million characters", "may take 100000 characters",
          _chat(tools=[_function("f", description="x" * 1_000_000)])),
    _case("values", "arguments that are a list", 'must have "type": "object"',
          _chat(tools=[_function("f", parameters={"type": "array"})])),
    _case("values", "arguments by a keyword that cannot be enforced", "the parameters of f",
          _chat(tools=[_function("f", parameters={"type": "object", "not": {}})])),
    _case("values", "arguments of a schema at another address", "the parameters of f",
          _chat(tools=[_function("f", parameters={"$ref": "http://169.254.169.254/schema.json"})])),
    _case("values", "a call that is required, of no function", "tools has no function", _chat(tool_choice="required")),
    _case("values", "a call of a function that is not there", "tools has no function 'g'",
          _chat(tools=[_function("f")], tool_choice={"type": "function", "function": {"name": "g"}})),
    _case("values", "a choice of another kind", "tool_choice", _chat(tools=[_function("f")], tool_choice="perhaps")),
    _case("values", "a required call of one token", "",
          _chat(tools=[_function("f")], tool_choice="required", max_tokens=1), 200),
    _case("values", "a name of 60,000 characters that no header could hold", "",
          _chat(**{"\r\nSet-Cookie: é" + "x" * 60_000: 1}), 200),
    _case("values", "20,000 unknown fields", "", _chat(**{f"x{i}": 1 for i in range(20_000)}), 200),
    _case("values", "a bias for an unknown token", "there is no token 99999", _chat(logit_bias={"99999": 1})),
    _case("values", "a bias of 10^9", "logit_bias", _chat(logit_bias={"1": 1e9})),
    _case("values", "a token id beyond all", "there is no token 99999",
          lambda: _encoded({"model": "nano", "prompt": [1, 99_999]}), path="/v1/completions"),
    _case("values", "token ids to read as text", "there is no token 99999",
          lambda: _encoded({"tokens": [99_999]}), path="/detokenize"),
    _case("values", "an invalid schema", "schema",
          _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}})),
    _case("values", "a schema at another address", "schema",
          _chat(response_format={"type": "json_schema",
                                 "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1/s.json"}}})),
    _case("values", "a schema that refers to itself without end", "",
          _chat(response_format={"type": "json_schema",
                                 "json_schema": {"name": "x", "schema": {"$ref": "#"}}})),
    _case("values", "a pattern that explodes", "",
          _chat(response_format={"type": "json_schema", "json_schema": {
              "name": "x", "schema": {"type": "string", "pattern": "((a{0,100}){0,100}){0,100}"}}}), 200),
    _case("values", "16 patterns of one value, which take over a minute to compile", "compiling it takes more than 1 s",
          _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SLOW_SCHEMA}})),
    _case("values", "400 patterns of names", "compiling it takes more than 1 s",
          _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {
              "type": "object", "patternProperties": {f"^{i}(a|b)*$": {} for i in range(400)}}}})),
    _case("values", "a multiple of 1,999,993, which takes 14 s and 1 GB", "compiling it takes more than 1 s",
          _chat(response_format={"type": "json_schema", "json_schema": {
              "name": "x", "schema": {"type": "integer", "multipleOf": 1_999_993}}})),
    _case("values", "a function with such patterns", "compiling it takes more than 1 s",
          _chat(tools=[_function("f", parameters={"type": "object", "properties": {"x": SLOW_SCHEMA}})],
                tool_choice="required")),
    _case("values", "66,000 answers one after the other", "more than 10000 objects",
          _chat(messages=[{"role": "assistant", "content": "a"}] * 66_000)),
    _case("values", "4,097 messages", "at most 4096 items", _chat(messages=[user("a")] * 4097)),
    _case("values", "an earlier response's id", "previous_response_id",
          lambda: _encoded({"model": "nano", "input": "x", "previous_response_id": "resp_1"}), path="/v1/responses"),
    _case("values", "more `<image>` than images", "1 <image> in the text, but 0 images",
          lambda: _encoded({"model": "nano", "prompt": "<image>"}), path="/v1/completions"),
    _case("values", "echo", "not supported", lambda: _encoded({"model": "nano", "prompt": "x", "echo": True}),
          path="/v1/completions"),
]  # fmt: skip

REQUESTS = [
    _case("requests", "a path that is not served", "POST /etc/passwd is not served", _chat(), 404,
          path="/v1/../../etc/passwd"),
    _case("requests", "a method that is not served", "takes POST, not PUT", _raw(b"{}"), 405, method="PUT"),
    _case("requests", "GET where POST is meant", "takes POST, not GET", _raw(b""), 405, method="GET"),
    _case("requests", "a model name with a path in it", "is not served", _raw(b""), 404, method="GET",
          path="/v1/models/..%2f..%2fetc%2fpasswd"),
    _case("requests", "another host's name (DNS rebinding)", "host name is not served", _chat(), 403,
          headers=(("Host", "evil.example"),)),
]  # fmt: skip

HOSTILE = [*ADDRESSES, *FILES, *PICTURES, *BODIES, *VALUES, *REQUESTS]


def to_markdown() -> str:
    """Return the tables of docs/hostile-requests.md."""
    lines = []
    for group in dict.fromkeys(case.group for case in HOSTILE):
        lines += ["", f"## {group.capitalize()}", "", "| request | answer | its sentence says |", "|---|---|---|"]
        lines += [
            f"| {case.name[:90]} | {case.status} | {case.says} |".replace("\0", "\\0")
            for case in HOSTILE
            if case.group == group
        ]
    return "\n".join(lines).strip() + "\n"
