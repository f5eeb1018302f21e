"""Resolve a name to a checkpoint folder: the built-in model, a local folder, or a hub id."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from vl2.errors import UserError
from vl2.files import local_path
from vl2.model_kind import model_kind

BUILT_IN = "nano"
# The released models by size. A folder of the same name in the working directory has precedence, as for any hub id.
RELEASED = {
    "tiny": "deepseek-ai/deepseek-vl2-tiny",
    "small": "deepseek-ai/deepseek-vl2-small",
    "base": "deepseek-ai/deepseek-vl2",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Files that can run code (*.bin, *.pt, *.py) are never downloaded. Files in subfolders are not needed.
SETTINGS, WEIGHTS, UNWANTED = "*.json", "*.safetensors", ["*/*"]


def built_in_folder() -> Path:
    return Path(str(resources.files("vl2") / "nano"))


def hub_id(name: str) -> str:
    """Return the hub id of a released size. Any other name, including that of an existing folder, is unchanged."""
    return name if local_path(name).is_dir() else RELEASED.get(name, name)


def locate_checkpoint(
    name: str | Path, *, revision: str | None = None, offline: bool = False, needs_weights: bool = True
) -> Path:
    """Return the folder of a checkpoint, and download it if the name is a released size or a hub id like "org/model".

    Without `needs_weights` only its JSON files are downloaded: the settings of model, processor and tokenizer.

    Downloads go to the hub's own cache. A dropped connection is resumed. A download that was stopped keeps its finished
    files and starts the others again. `offline` uses only cached files. Raise UserError if the name cannot be resolved,
    and, before any weights are downloaded, if it is a checkpoint of an unsupported model.
    """
    text = str(name)
    if not text:
        raise UserError("the name of the model is empty")
    folder = built_in_folder() if text == BUILT_IN else local_path(text)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"a revision is for hub ids, and {text} is a local folder")
        _check_model(folder)
        return folder
    if folder.exists():
        raise UserError(f"{text} is a file: give the folder that holds config.json")
    repo_id = hub_id(text)
    if not HUB_ID.fullmatch(repo_id):
        sizes = ", ".join(RELEASED)
        raise UserError(
            f'no folder {text}: give "{BUILT_IN}" (built in), a released size ({sizes}), a checkpoint folder, or a hub '
            "id like org/model"
        )
    folder = _download(repo_id, revision, offline, [SETTINGS])
    _check_model(folder)
    return _download(repo_id, revision, offline, [SETTINGS, WEIGHTS]) if needs_weights else folder


def locate_other_model(name: str, *, offline: bool = False, needs_weights: bool = True) -> Path:
    """Return the folder of a model of any kind, and download it if the name is a hub id.

    The other arguments are those of `locate_checkpoint`. Raise UserError if the name is neither a folder nor a hub id.
    """
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(name):
        raise UserError(f"no folder {name}: give a folder that holds config.json, or a hub id like org/model")
    return _download(name, None, offline, [SETTINGS, WEIGHTS] if needs_weights else [SETTINGS])


def _check_model(folder: Path) -> None:
    """Raise UserError if config.json is of an unsupported model. Other errors in it are reported when it is read."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(values, dict):
        model_kind(values)


def _download(repo_id: str, revision: str | None, offline: bool, wanted: list[str]) -> Path:
    # Imported here because the import takes 0.2 seconds, which opening a local folder should not cost.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = repo_id if revision is None else f"{repo_id} at revision {revision}"
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=UNWANTED,
                local_files_only=offline,
            )
        )
    except GatedRepoError:
        raise UserError(f"{repo_id} is gated: accept its licence on the hub and log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{repo_id} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(f"no folder and no model on the hub is called {repo_id} (private ones need a login)") from None
    except LocalEntryNotFoundError:
        where = (
            "is not complete in the local cache"
            if offline
            else "is not in the local cache and the hub cannot be reached"
        )
        raise UserError(f"{named} {where}, and there is no such folder") from None
    except HFValidationError as error:
        raise UserError(f"no folder {repo_id}, and it is no hub id: {' '.join(str(error).split())}") from None
    except Exception as error:  # any type: versions of the hub library differ in their transport and its exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"downloading {named} failed: {reason}; run it again: finished files are kept") from error
