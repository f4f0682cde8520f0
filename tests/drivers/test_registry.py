"""Which driver answers to which name, and what a wrong name is told."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.compute import Compute
from drivers.directory import DirectoryStore
from drivers.glance.store import GlanceStore
from drivers.libvirt.driver import LibvirtCompute
from drivers.oci.store import OciStore
from drivers.registry import COMPUTE, STORES, open_compute, open_store
from drivers.s3.store import S3Store
from drivers.simulated import SimulatedCompute
from planvirt.config import HostConfig, StoreConfig
from planvirt.errors import ConfigError

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, dict[str, str]] = {
    "glance": {
        "auth_url": "https://cloud",
        "username": "me",
        "password_secret": "nobody_reads_it",
        "project": "images",
    },
    "oci": {"registry": "registry.example.org", "repository": "images"},
    "s3": {"bucket": "images", "access_key_id": "me", "secret_access_key_secret": "nobody_reads_it"},
}


def store_config(driver: str) -> StoreConfig:
    """A configuration with all that a kind of store needs."""
    return StoreConfig("s", driver=driver, settings=SETTINGS.get(driver, {}))


def test_every_name_opens_its_driver(tmp_path: Path) -> None:
    hosts = {name: type(open_compute(HostConfig("h", driver=name), tmp_path)) for name in COMPUTE}
    stores = {name: type(open_store(store_config(name), tmp_path, {})) for name in STORES}
    assert hosts == {"libvirt": LibvirtCompute, "simulated": SimulatedCompute}
    assert stores == {"directory": DirectoryStore, "glance": GlanceStore, "oci": OciStore, "s3": S3Store}


def test_opening_touches_nothing(tmp_path: Path) -> None:
    for name in COMPUTE:
        assert open_compute(HostConfig("h", driver=name), tmp_path).host == "h"
    for name in STORES:
        assert open_store(store_config(name), tmp_path, {}).name == "s"
    assert list(tmp_path.iterdir()) == []


def test_data_lies_under_home_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    open_compute(HostConfig("h", driver="simulated"), tmp_path / "home").facts()
    open_compute(HostConfig("h", driver="simulated", path=tmp_path / "world.json"), tmp_path / "home").facts()
    open_store(StoreConfig("s"), tmp_path / "home", {}).check()
    open_store(StoreConfig("s", path=tmp_path / "images"), tmp_path / "home", {}).check()
    for made in ("home/simulated-h.json", "world.json", "home/stores/s/images", "images/images"):
        assert (tmp_path / made).exists()


@pytest.mark.parametrize(("driver", "hint"), [("libvrt", "libvirt"), ("simulate", "simulated")])
def test_an_unknown_compute_driver_is_told_what_was_meant(tmp_path: Path, driver: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_compute(HostConfig("kvm1", driver=driver), tmp_path)
    assert "kvm1" in caught.value.brief and driver in caught.value.brief
    assert f"did you mean '{hint}'" in caught.value.resolution


def test_an_unknown_store_driver_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(StoreConfig("attic", driver="xyz"), tmp_path, {})
    assert "attic" in caught.value.brief
    assert "did you mean" not in caught.value.resolution and "directory" in caught.value.resolution


def test_the_table_loads_no_driver_before_it_is_used() -> None:
    code = "import sys, drivers.registry; print(list(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(eval(done.stdout))  # noqa: S307 - our own list of names
    assert not loaded & {f"drivers.{name}" for name in ("directory", "glance", "libvirt", "s3", "simulated")}
    assert not loaded & {"boto3", "keystoneauth1", "libvirt", "requests"}


@pytest.mark.parametrize(("driver", "library"), [("glance", "keystoneauth1"), ("s3", "boto3")])
def test_a_library_that_is_not_installed_is_told_with_its_extra(driver: str, library: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from pathlib import Path; from drivers.registry import open_store; from planvirt.config import StoreConfig\n"
        "from planvirt.errors import ConfigError\n"
        f"try: open_store(StoreConfig('s', {driver!r}, settings={SETTINGS[driver]!r}), Path({str(tmp_path)!r}), {{}})\n"
        "except ConfigError as error: print(error, error.resolution)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"the library {library} is not installed" in done.stdout and f"planvirt[{driver}]" in done.stdout


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that brings a compute driver, a store, one that is broken and one that takes our name."""
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[planvirt.drivers]\n"
        "paper = stranger_driver:compute\n"
        "broken = stranger_driver:nothing\n"
        "simulated = stranger_driver:usurper\n"
        "store.shelf = stranger_driver:store\n"
    )
    (tmp_path / "stranger_driver.py").write_text(
        "from drivers.directory import DirectoryStore\n"
        "from drivers.simulated import SimulatedCompute\n"
        "def compute(config, home): return SimulatedCompute.in_memory(f'paper {config.name}')\n"
        "def store(config, home, secrets): return DirectoryStore(f'shelf {config.name}', home)\n"
        "def usurper(config, home): raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("stranger_driver", None)


@pytest.mark.usefixtures("stranger")
def test_a_stranger_brings_drivers(tmp_path: Path) -> None:
    compute: Compute = open_compute(HostConfig("h", driver="paper"), tmp_path)
    assert compute.host == "paper h"
    assert open_store(StoreConfig("s", driver="shelf"), tmp_path, {}).name == "shelf s"


@pytest.mark.usefixtures("stranger")
def test_a_strangers_store_is_no_host_and_takes_no_name_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_compute(HostConfig("h", driver="shelf"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_store(StoreConfig("s", driver="paper"), tmp_path, {})
    assert "shelf" in caught.value.resolution
    assert isinstance(open_compute(HostConfig("h", driver="simulated"), tmp_path), SimulatedCompute)


@pytest.mark.usefixtures("stranger")
def test_a_strangers_broken_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="broken"):
        open_compute(HostConfig("h", driver="broken"), tmp_path)
