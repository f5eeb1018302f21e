"""List the checkpoints in the Hugging Face hub's cache with their sizes on disk, and delete one.

Sizes are in bytes. Files are deleted only through huggingface_hub's own interface, and never outside the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.checkpoint.folder import CONFIG, weight_files
from vl2.checkpoint.resolve import RELEASED
from vl2.errors import UserError
from vl2.model_kind import MODEL_TYPE, model_kind

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, HFCacheInfo


@dataclass(frozen=True, kw_only=True)
class CachedCheckpoint:
    """A DeepSeek-VL2 or DeepSeek-OCR checkpoint that was downloaded from the hub."""

    hub_id: str
    repo_folder: Path  # the cache's folder for this repository, with all revisions
    folder: Path  # the files of the revision in use: that of the main branch, otherwise the newest
    commits: tuple[str, ...]  # the commit hashes of all cached revisions
    bytes_on_disk: int  # includes the partial files of interrupted downloads
    is_complete: bool

    @property
    def name(self) -> str:
        """The shortest name that `--model` accepts: a released size, otherwise the hub id."""
        return next((size for size, hub_id in RELEASED.items() if hub_id == self.hub_id), self.hub_id)


def cache_folder() -> Path:
    from huggingface_hub import constants  # imported inside functions in this file: the import takes 0.2 seconds

    return Path(constants.HF_HUB_CACHE)


def cached_checkpoints() -> list[CachedCheckpoint]:
    """Return the supported checkpoints in the hub's cache: first the released sizes, then the others by name."""
    found = [made for repo in _scan_models() if (made := _checkpoint_of(repo)) is not None]
    order = {hub_id: place for place, hub_id in enumerate(RELEASED.values())}
    return sorted(found, key=lambda checkpoint: (order.get(checkpoint.hub_id, len(order)), checkpoint.hub_id))


def find_cached(name: str) -> CachedCheckpoint:
    """Return a cached checkpoint by hub id or released size. Raise UserError if the cache has no such checkpoint."""
    hub_id = RELEASED.get(name, name)
    found = {checkpoint.hub_id: checkpoint for checkpoint in cached_checkpoints()}
    if hub_id in found:
        return found[hub_id]
    if any(repo.repo_id == hub_id for repo in _scan_models()):
        raise UserError(f"{hub_id} is not a DeepSeek-VL2 checkpoint: `hf cache rm model/{hub_id}` deletes other models")
    here = f"in it are {', '.join(checkpoint.name for checkpoint in found.values())}" if found else "it holds none"
    raise UserError(f"no checkpoint {name} in the cache {cache_folder()}: {here}")


def delete_cached(checkpoint: CachedCheckpoint) -> None:
    """Delete all revisions of a checkpoint from the cache.

    Raise UserError if its folder resolves to a path outside the cache, or if it could not be deleted completely.
    """
    from huggingface_hub import scan_cache_dir

    cache = cache_folder()
    if not checkpoint.repo_folder.resolve().is_relative_to(cache.resolve()):
        raise UserError(
            f"{checkpoint.repo_folder} leads to {checkpoint.repo_folder.resolve()}, which is not in the cache {cache}: "
            "nothing was deleted"
        )
    scan_cache_dir(cache).delete_revisions(*checkpoint.commits).execute()
    if checkpoint.repo_folder.exists():
        raise UserError(f"{checkpoint.repo_folder} could not be deleted whole: are its files yours, and not in use?")


def _scan_models() -> list[CachedRepoInfo]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        scanned: HFCacheInfo = scan_cache_dir(cache_folder())
    except CacheNotFound:  # nothing was ever downloaded
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cache {cache_folder()}: {error}") from None
    return [repo for repo in scanned.repos if repo.repo_type == "model"]


def _checkpoint_of(repo: CachedRepoInfo) -> CachedCheckpoint | None:
    revisions = [revision for revision in repo.revisions if _is_ours(revision.snapshot_path)]
    if not revisions:
        return None

    def newest(revision: CachedRevisionInfo) -> tuple[bool, float]:
        return "main" in revision.refs, revision.last_modified

    folder = max(revisions, key=newest).snapshot_path
    unfinished = (repo.repo_path / "blobs").glob("*.incomplete")
    return CachedCheckpoint(
        hub_id=repo.repo_id,
        repo_folder=repo.repo_path,
        folder=folder,
        commits=tuple(sorted(revision.commit_hash for revision in repo.revisions)),
        bytes_on_disk=repo.size_on_disk + sum(path.stat().st_size for path in unfinished),
        is_complete=_is_complete(folder),
    )


def _is_ours(folder: Path) -> bool:
    """Return whether the folder's config.json describes a supported model.

    Unlike `--model`, this does not accept a config.json that has neither our model type nor a `language_config`.
    """
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or (values.get("model_type") != MODEL_TYPE and "language_config" not in values):
            return False
        model_kind(values)
    except (OSError, ValueError, UserError):
        return False
    return True


def _is_complete(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except UserError:
        return False
