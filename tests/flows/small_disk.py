"""A file system that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mib: int, owner: int = 0) -> Iterator[None]:
    """Have a file system of so many MiB at the folder. Skips the test where this machine lets us mount none."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    options = f"size={mib}m,mode=755,uid={owner}"
    mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no mounts on this machine")
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Leave no byte of space in the folder's file system."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()
