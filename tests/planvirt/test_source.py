"""Reading a plan file, and telling which commit it is from."""

import os
import subprocess
from pathlib import Path

import pytest

from planvirt.source import SourceError, git_commit, read_source, repository_root


def git(folder: Path, *arguments: str) -> str:
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a"}
    environ = {**os.environ, **names, "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null"}
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file"):
        read_source(tmp_path / "plan.yaml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it is a folder"):
        read_source(tmp_path)


def test_a_large_file(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(SourceError, match="larger than 1 MiB"):
        read_source(tmp_path / "plan.yaml")


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"planvirt: 1\nname: \xff\n")
    with pytest.raises(SourceError, match=r"not UTF-8 text \(line 2\)"):
        read_source(tmp_path / "plan.yaml")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"\xef\xbb\xbfplanvirt: 1\n")
    assert read_source(tmp_path / "plan.yaml").text == "planvirt: 1\n"


def test_the_commit(tmp_path: Path) -> None:
    plan = tmp_path / "plans" / "plan [1].yaml"
    plan.parent.mkdir()
    plan.write_text("a")
    assert git_commit(plan) is None
    git(tmp_path, "init", "-q")
    assert repository_root(plan) == tmp_path
    assert git_commit(plan) is None
    (tmp_path / "other").write_text("b")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "one")
    assert git_commit(plan) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "two")
    (tmp_path / "other").write_text("changed")
    assert git_commit(plan) == git(tmp_path, "rev-parse", "HEAD")
    plan.write_text("c")
    assert git_commit(plan) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_an_ignored_plan_is_from_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("plan.yaml")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "plan.yaml").write_text("a")
    assert (git_commit(tmp_path / "plan.yaml") or "").endswith("-dirty")


def test_the_repository_starts_no_program(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    (tmp_path / "plan.yaml").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "config", "core.fsmonitor", str(trap))
    assert git_commit(tmp_path / "plan.yaml")
    assert not (tmp_path / "sprung").exists()
