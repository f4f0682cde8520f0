"""What every test has: a home of its own, and no way to the user's files."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_real_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point everything that planvirt reads from the user at an empty folder."""
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PLANVIRT_HOME", str(home / "planvirt"))
    monkeypatch.delenv("PLANVIRT_CONFIG", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
