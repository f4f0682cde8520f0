"""What must outlast a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files are in the folder, and under which names."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
