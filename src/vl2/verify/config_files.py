"""Group 1: compare config.json with the preset of its size; check the list of files, the weight files and the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl2.checkpoint.folder import INDEX, SINGLE
from vl2.checkpoint.safetensors_file import StoredTensor, read_header
from vl2.config import preset
from vl2.errors import UserError
from vl2.verify.check import GROUPS, Check, listed, number_of, passed_if
from vl2.verify.subject import TRAINING_ONLY, UNCERTAIN, Subject, fields_of, index_names, nearest_size

GROUP = GROUPS[0]
NEEDED = ("config.json", "processor_config.json", "tokenizer.json")
READ = (".json", ".safetensors")  # other files are ignored, and their names may be private
HASHED_BYTES = 64_000_000  # largest file that is hashed; larger ones are weights
_ABSENT = object()


def check_config(subject: Subject) -> Check:
    """Compare config.json with the preset of its size, field by field."""
    name = "config.json"
    if subject.config is None:
        return Check(group=GROUP, name=name, verdict="fail", found=subject.fault)
    if subject.size is None:
        nearest, distance = nearest_size(subject.config)
        return Check(
            group=GROUP,
            name=name,
            verdict="not checked",
            found=f"of no released size: {distance} of {len(fields_of(subject.config))} fields differ from {nearest}, "
            "the nearest. What follows is checked against this config.json itself",
        )
    expected = preset(subject.size)
    if subject.config.kind != expected.kind:
        found = f"it describes {subject.config.kind}, and the name is of {expected.kind}"
        return Check(group=GROUP, name=name, verdict="fail", found=found)
    ours, theirs = fields_of(subject.config), fields_of(expected)
    is_ocr = expected.kind != "DeepSeek-VL2"
    different = [key for key in theirs if ours[key] != theirs[key] and key not in TRAINING_ONLY]
    wrong = [key for key in different if not (is_ocr and key in UNCERTAIN)]
    lines = [f"{key}: {ours[key]!r}, {subject.size} has {theirs[key]!r}" for key in wrong]
    noted = [
        f"{key}: {_shown(found)}, {subject.size} has {_shown(other)} (changes no answer)"
        for key, found, other in _different_keys(subject.values, expected.to_dict())
        if (key not in theirs or key in TRAINING_ONLY) and not (is_ocr and key.startswith("vision_config.width"))
    ]
    noted += [
        f"{key}: {ours[key]!r}, {theirs[key]!r} was assumed (the released value is not known here)"
        for key in different
        if key not in wrong
    ]
    if wrong:
        found = f"{number_of(len(wrong), 'field')} of {len(theirs)} differ from {subject.size}: {', '.join(wrong[:5])}"
    else:
        found = f"the preset {subject.size}: all {len(theirs)} fields that shape the model are equal"
        found += f"; {number_of(len(noted), 'other key')} differ" if noted else ""
    return Check(group=GROUP, name=name, verdict=passed_if(not wrong), found=found, details=listed(lines + noted))


def check_file_list(subject: Subject) -> Check:
    """Check that no file is missing that loading a model needs. The details list all files with size and hash."""
    missing = [name for name in NEEDED if not (subject.folder / name).is_file()]
    if not subject.is_settings_only and not any(subject.folder.glob("*.safetensors")):
        missing.append("the weights (*.safetensors)")
    files = sorted(file for file in subject.folder.iterdir() if file.suffix in READ and file.is_file())
    found = f"missing: {', '.join(missing)}" if missing else f"{number_of(len(files), 'file')}, nothing missing"
    details = tuple(_described(file) for file in files)
    return Check(group=GROUP, name="file list", verdict=passed_if(not missing), found=found, details=details)


def read_headers(subject: Subject) -> tuple[dict[str, StoredTensor], list[str]]:
    """Read the headers of all weight files, but no weights. Return their tensors by name, and the faults found."""
    tensors: dict[str, StoredTensor] = {}
    faults: list[str] = []
    for file in sorted(subject.folder.glob("*.safetensors")):
        try:
            held = read_header(file)
        except UserError as error:
            faults.append(str(error))
            continue
        except (OSError, KeyError) as error:
            faults.append(f"{file.name} cannot be read: {error}")
            continue
        faults += [
            f"{name} is stored twice, in {tensors[name].path.name} and {file.name}" for name in held if name in tensors
        ]
        end = max((tensor.offset + tensor.nbytes for tensor in held.values()), default=0)
        if end != file.stat().st_size:
            faults.append(f"{file.name} has {file.stat().st_size - end} bytes after its last tensor")
        tensors.update(held)
    return tensors, faults


def check_index(subject: Subject, tensors: Mapping[str, StoredTensor], faults: list[str]) -> Check:
    """Check that the weight files are complete, and that the index lists all files and tensors correctly."""
    name = "weight files and index"
    if subject.is_settings_only:
        return Check(group=GROUP, name=name, verdict="not checked", found="not all weight files are on this machine")
    if not tensors and not faults:
        return Check(group=GROUP, name=name, verdict="fail", found="there are no weight files")
    wrong = list(faults)
    path = subject.folder / INDEX
    num_files = len({tensor.path for tensor in tensors.values()})
    if path.is_file():
        wrong += _index_faults(path, tensors)
        summary = f"{number_of(num_files, 'file')}, whole, and the index names all of them"
    elif num_files == 1 and (subject.folder / SINGLE).is_file():
        summary = "one file, whole, which needs no index"
    else:
        wrong.append(f"{INDEX} is missing")
        summary = ""
    found = wrong[0] if wrong else summary
    found += f" (and {len(wrong) - 1} more faults)" if len(wrong) > 1 else ""
    return Check(group=GROUP, name=name, verdict=passed_if(not wrong), found=found, details=listed(wrong[1:]))


def _index_faults(path: Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    try:
        named = index_names(path)
    except UserError as error:
        return [str(error)]
    files = {file.name for file in path.parent.glob("*.safetensors")}
    absent = sorted(set(named.values()) - files)
    wrong = [f"{file} is named by the index and not there" for file in absent]
    wrong += [f"{file} is not named by the index" for file in sorted(files - set(named.values()))]
    readable = {tensor.path.name for tensor in tensors.values()}
    for tensor, file in named.items():
        held = tensors.get(tensor)
        if held is None and file in readable:
            wrong.append(f"{tensor}: the index says {file}, which does not hold it")
        elif held is not None and held.path.name != file:
            wrong.append(f"{tensor}: the index says {file}, it is in {held.path.name}")
    wrong += [f"{tensor} is not in the index" for tensor in tensors if tensor not in named]
    metadata = json.loads(path.read_text(encoding="utf-8")).get("metadata")
    listed_bytes = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    total = sum(tensor.nbytes for tensor in tensors.values())
    if listed_bytes is not None and listed_bytes != total and not absent and readable == files:
        wrong.append(f"the index says {listed_bytes:,} bytes in all, the files hold {total:,}")
    return wrong


def _different_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, our value, their value) for each key in which two JSON objects differ."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        mine, other = ours.get(key, _ABSENT), theirs.get(key, _ABSENT)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found += _different_keys(mine, other, f"{prefix}{key}.")
        elif mine != other:
            found.append((f"{prefix}{key}", mine, other))
    return found


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _described(file: Path) -> str:
    size = file.stat().st_size
    line = f"{file.name}  {size:,} bytes"
    if size > HASHED_BYTES or file.suffix == ".safetensors":
        return line
    return f"{line}  sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
