"""A benchmark's public copy on the hub, downloaded where there is a network: `--data hub`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vl2.errors import UserError

HUB = "hub"


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub, and the files of it that a task needs."""

    name: str  # owner/name
    files: tuple[str, ...]  # patterns, as in a shell, in which {split} stands for the part that is read


@cache
def fetch(dataset: Dataset, split: str) -> Path:
    """Return the folder of a data set in the hub's own cache, downloaded if it is not there. UserError if it cannot be.

    Only data of the split are downloaded, never a program; a dropped connection is resumed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [pattern.replace("{split}", split) for pattern in dataset.files]
    try:
        folder = Path(snapshot_download(dataset.name, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(f"{dataset.name} is gated: accept its terms on the hub, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"there is no data set {dataset.name} on the hub (private ones need a login)") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{dataset.name} is not in the local cache and the hub cannot be reached: give local files with --data"
        ) from None
    except Exception as error:  # the transport library, and so its exceptions, changes between hub versions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"downloading {dataset.name} failed: {reason}; try again: finished files are kept") from error
    if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern)):
        raise UserError(f"{dataset.name} has no {' or '.join(patterns)}: give local files with --data")
    return folder
