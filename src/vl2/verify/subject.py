"""The checkpoint that is verified: where it lies, what it is called, which size it should be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.checkpoint.folder import INDEX, SINGLE
from vl2.checkpoint.locate import BUILT_IN, HUB_ID, RELEASED
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.config import ModelConfig, preset
from vl2.errors import UserError
from vl2.verify.released import MOST_DIFFERENT_FIELDS, nearest_size

HUB_CACHE = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{7,40})$")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint folder. What cannot be read is None, with the reason in `fault`."""

    folder: Path
    label: str  # what the page calls it
    named_size: str | None  # the size that its name promises
    size: str | None  # the size that it is checked against; None for a model of another shape
    config: ModelConfig | None
    fault: str  # why config.json cannot be used, "" where it can
    values: dict[str, Any]  # what config.json says
    is_settings_only: bool  # of the hub, with what reads no weights downloaded and not all of the rest

    @classmethod
    def of(cls, target: str, folder: Path, *, needs_weights: bool = True) -> Subject:
        label = label_of(target, folder)
        sizes = {BUILT_IN: BUILT_IN, **{hub_id: size for size, hub_id in RELEASED.items()}}
        named = sizes.get(label.partition(" at ")[0])
        config, fault = None, ""
        try:
            config = ModelConfig.from_file(folder / "config.json")
        except UserError as error:
            fault = str(error)
        except (TypeError, ValueError, AttributeError) as error:  # a value of a type that nobody expected
            fault = f"config.json has a value that cannot be used: {error}"
        size = named
        if config is not None and named is None:
            nearest, distance = nearest_size(config)
            size = nearest if distance <= MOST_DIFFERENT_FIELDS else None
        return cls(
            folder=folder,
            label=label,
            named_size=named,
            size=size,
            config=config,
            fault=fault,
            values=_values(folder / "config.json"),
            is_settings_only=not needs_weights and HUB_CACHE.search(str(folder)) is not None and not _is_whole(folder),
        )

    @property
    def expected(self) -> ModelConfig | None:
        """The configuration that the files must fit: the size's, or its own where it has none."""
        return self.config if self.size is None else preset(self.size)

    @property
    def record(self) -> QuantizationConfig | None:
        """What config.json says about quantized weights. UserError for what this package cannot read."""
        return None if self.config is None else QuantizationConfig.of(self.config, self.folder)


def label_of(target: str, folder: Path) -> str:
    """Return what may be told of where a checkpoint comes from: its id on the hub, or the folder's own name."""
    if target == BUILT_IN:
        return BUILT_IN
    cached = HUB_CACHE.search(str(folder))
    if cached is not None:
        return f"{cached['id'].replace('--', '/')} at {cached['commit'][:12]}"
    if HUB_ID.fullmatch(target) and not Path(target).exists():
        return target
    return f"folder {folder.resolve().name}"


def index_names(path: Path) -> dict[str, str]:
    """Return which file each tensor is in. UserError where the index cannot be read."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path.name} is not a valid index: {error!r}") from None


def _is_whole(folder: Path) -> bool:
    if not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    try:
        return all((folder / file).is_file() for file in index_names(folder / INDEX).values())
    except UserError:
        return True  # a fault, to be told as one


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
