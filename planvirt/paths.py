"""Which files of this machine a plan may use: those of its own repository, and of folders the operator allows."""

from dataclasses import dataclass
from pathlib import Path

from planvirt.config import Config
from planvirt.source import repository_root


class PathRefused(Exception):
    """A path that a plan may not use, or that leads nowhere."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Bounds:
    """The folder that relative paths start from, and the folders that a path must stay in, all without links."""

    folder: Path
    allowed: tuple[Path, ...]
    repository: bool

    @classmethod
    def of(cls, plan: Path, config: Config) -> "Bounds":
        """The bounds of a plan file: its repository, or only its own folder where there is none."""
        folder = plan.resolve().parent
        root = repository_root(plan)
        extra = tuple(path.expanduser().resolve() for path in config.allow_paths)
        return cls(folder, (root or folder, *extra), root is not None)

    def resolve(self, text: str) -> Path:
        """The file's real path, links followed; raises PathRefused."""
        try:
            real = (self.folder / text).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise PathRefused(f"'{text}' is not a usable path", "") from error
        if not any(real.is_relative_to(folder) for folder in self.allowed):
            around = "the plan's repository" if self.repository else "the plan's folder"
            raise PathRefused(
                f"'{text}' lies outside {around}",
                "move the file there, or let the operator add its folder to 'allow_paths' in planvirt.toml",
            )
        try:
            if not real.is_file():
                what = "is a folder, not a file" if real.is_dir() else "does not exist"
                raise PathRefused(f"'{text}' {what}", "paths are relative to the plan's folder")
        except OSError as error:
            raise PathRefused(f"'{text}' is not a usable path", "") from error
        return real
