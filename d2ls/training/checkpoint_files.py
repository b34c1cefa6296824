"""Finding complete checkpoints; needs no torch, so that drivers can look too."""

import re
from dataclasses import dataclass

from d2ls import storage

COMPLETE_FILE = "COMPLETE"
"""Written last; a checkpoint without it does not count."""


@dataclass(frozen=True)
class CheckpointRef:
    """A complete checkpoint.

    Attributes:
        uri: its folder.
        step: optimizer steps done.
    """

    uri: str
    step: int


def complete_checkpoints(root: str) -> list[CheckpointRef]:
    """Lists the complete checkpoints below a folder, oldest first."""
    names = [
        entry.base_name for entry in storage.list_files(root) if re.fullmatch(r"step-\d{8}", entry.base_name)
    ]
    found = [CheckpointRef(storage.join(root, name), int(name.removeprefix("step-"))) for name in names]
    return [each for each in found if storage.exists(storage.join(each.uri, COMPLETE_FILE))]


def checkpoint_name(step: int) -> str:
    """Returns the folder name of the checkpoint after a step."""
    return f"step-{step:08d}"
