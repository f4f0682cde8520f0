"""planvirt.toml: where it is found, what its defaults are, and what it is refused for."""

from pathlib import Path

import pytest

from planvirt.config import HostConfig, InvalidConfig, SecretConfig, StoreConfig, load_config
from planvirt.errors import ConfigError


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"PLANVIRT_HOME": str(home / "data"), **more}


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "planvirt.toml"
    path.write_text(text)
    return path


def test_without_a_file(tmp_path: Path) -> None:
    config = load_config(None, tmp_path, environ(tmp_path))
    assert config.path is None
    assert config.home == tmp_path / "data"
    assert config.hosts == {"local": HostConfig("local", uri="auto")}
    assert config.stores == {"local": StoreConfig("local", "directory", tmp_path / "data" / "images")}
    assert (config.default_host, config.default_store) == ("local", "local")
    assert config.journal_url == f"sqlite:///{tmp_path}/data/journal.sqlite"


def test_a_whole_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
[hosts.kvm1]
uri = "qemu+ssh://kvm1/system"
accel = "kvm"
pool_path = "/srv/pool"
[hosts.sim]
driver = "simulated"
path = "state/world.json"
[stores.images]
path = "~/images"
[stores.spare]
[journal]
url = "postgresql://db/planvirt"
[plans]
env = ["RELEASE"]
allow_paths = ["../shared", "/srv/images"]
default_host = "sim"
default_store = "images"
[secrets.ops_key]
file = "keys/ops"
[secrets.token]
env = "TOKEN"
""",
    )
    config = load_config(path, Path("/"), environ(tmp_path))
    assert config.path == path
    assert config.hosts["kvm1"] == HostConfig(
        "kvm1", uri="qemu+ssh://kvm1/system", accel="kvm", pool_path=Path("/srv/pool")
    )
    assert config.hosts["sim"] == HostConfig("sim", "simulated", path=tmp_path / "state" / "world.json")
    assert config.stores["images"].path == Path.home() / "images"
    assert config.stores["spare"].path == tmp_path / "data" / "stores" / "spare"
    assert config.journal_url == "postgresql://db/planvirt"
    assert config.env == ("RELEASE",)
    assert config.allow_paths == (tmp_path / "../shared", Path("/srv/images"))
    assert (config.default_host, config.default_store) == ("sim", "images")
    assert config.secrets["ops_key"] == SecretConfig("ops_key", file=tmp_path / "keys" / "ops")
    assert config.secrets["token"] == SecretConfig("token", env="TOKEN")


def test_the_only_host_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "[hosts.kvm1]\n[stores.images]\n")
    config = load_config(path, tmp_path, environ(tmp_path))
    assert (config.default_host, config.default_store) == ("kvm1", "images")


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    start = tmp_path / "work" / "plans"
    start.mkdir(parents=True)
    user = write(tmp_path / "user" / "planvirt", "[hosts.user]\n")
    assert load_config(None, start, environ(tmp_path)).path == user
    above = write(tmp_path / "work", "[hosts.above]\n")
    assert load_config(None, start, environ(tmp_path)).path == above
    named = write(tmp_path / "named", "[hosts.named]\n")
    assert load_config(None, start, environ(tmp_path, PLANVIRT_CONFIG=str(named))).path == named
    explicit = write(tmp_path / "explicit", "[hosts.explicit]\n")
    assert load_config(explicit, start, environ(tmp_path, PLANVIRT_CONFIG=str(named))).path == explicit


def test_an_explicit_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "none.toml", tmp_path, environ(tmp_path))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("[hosts.a]\nuri = 1\n", ["2:1 uri must be text, not 1 (put it in quotes: \"1\")"]),
        ("[hosts.a]\ndrivr = 'x'\n", ["2:1 unknown key 'drivr' in a host (did you mean 'driver'?)"]),
        ("[host.a]\n", ["1:1 unknown key 'host' in the configuration (did you mean 'hosts'?)"]),
        ("[hosts.a]\naccel = 'kvn'\n", ["2:1 unknown value of accel 'kvn' (did you mean 'kvm'?)"]),
        ("\n[secrets.key]\n", ["2:1 a secret needs exactly one of 'env' and 'file'"]),
        ("[plans]\nenv = ['A B']\n", ["2:1 item 1 of env must be the name of an environment variable, not 'A B'"]),
        (
            "[hosts.kvm1]\n[plans]\ndefault_host = 'kvm2'\n",
            ["3:1 default_host names 'kvm2', which is not in [hosts] (did you mean 'kvm1'?)"],
        ),
        ("[hosts\n", ["1:7 malformed TOML: expected ']' at the end of a table declaration"]),
        ("hosts = 3\n", ["1:1 hosts must be tables [hosts.NAME], not 3"]),
        ("\nstores.a.driver = ''\n", ["2:1 driver must be text, not an empty text"]),
        ("\nstores.a = 3\n", ["2:1 a must be a table, not 3"]),
        ("[stores.a]\nbucket = 'x'\n", ["2:1 unknown key 'bucket' in a directory store (known: driver, path)"]),
        ("[stores.a]\ndriver = 's3'\n", ["1:1 an S3 store needs the key 'bucket'"]),
        (
            "[stores.a]\ndriver = 'oci'\nregistry = 'https://r'\nrepository = 'Images'\ninsecure = 'yes'\n",
            [
                "3:1 registry must be a host and a port, such as 'registry.example.org:5000', not 'https://r'",
                "4:1 repository must be the name of a repository, such as 'machines/images', not 'Images'",
                "5:1 insecure must be true or false, not 'yes' (did you mean 'true'?)",
            ],
        ),
        (
            "[stores.a]\ndriver = 'oci'\nregistry = '[::1]:5000'\nrepository = 'a/b-c__d'\nusername = 'me'\n",
            ["1:1 an OCI store has both of 'username' and 'password_secret', or neither"],
        ),
        (
            "[stores.a]\ndriver = 's3'\nbukcet = 'xyz'\n",
            ["3:1 unknown key 'bukcet' in an S3 store (did you mean 'bucket'?)"],
        ),
        (
            "[stores.a]\ndriver = 's3'\nbucket = 'xyz'\naccess_key_id = 'me'\n",
            ["1:1 an S3 store has both of 'access_key_id' and 'secret_access_key_secret', or neither"],
        ),
        (
            "[stores.a]\ndriver = 's3'\nbucket = 'xyz'\nendpoint_url = 'http://me:secret@s3'\n",
            [
                "4:1 endpoint_url must be a URL such as 'https://s3.example.org', without a path and without a password"
            ],
        ),
        (
            "[stores.a]\ndriver = 'glance'\n",
            ["1:1 a Glance store needs 'auth_url', or the 'url' of a server that asks nobody who he is"],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nauth_url = 'https://cloud:5000/v3'\n",
            ["1:1 with 'auth_url' a Glance store needs either 'username' or 'application_credential_id'"],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nauth_url = 'https://cloud'\nusername = 'me'\n",
            ["1:1 a Glance store has all of 'username', 'password_secret' and 'project', or none"],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nauth_url = 'https://cloud'\napplication_credential_id = 'me'\n",
            [
                "1:1 a Glance store has both of 'application_credential_id' and 'application_credential_secret',"
                " or neither"
            ],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nurl = 'http://glance'\nregion = 'north'\n",
            [
                "1:1 'username', 'application_credential_id', 'region' and 'interface' are for Keystone:"
                " they need 'auth_url'"
            ],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nurl = 'http://me:secret@glance'\n",
            ["3:1 it must be a URL such as 'https://cloud.example.org', without a password"],
        ),
        (
            "[stores.a]\ndriver = 'glance'\nurl = 'http://glance'\nheaders = {'Roles:' = 'x', X-User-Id = \"a\\nb\"}\n",
            [
                "4:1 'Roles:' must be the name of a header (did you mean 'roles'?)",
                "4:1 X-User-Id must be text without special characters, not 'a b'",
            ],
        ),
    ],
)  # fmt: skip
def test_problems(text: str, places: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidConfig) as caught:
        load_config(path, tmp_path, environ(tmp_path))
    found = [f"{p.line}:{p.column} {p.message}" + (f" ({p.hint})" if p.hint else "") for p in caught.value.problems]
    assert found == places
    assert str(path) in caught.value.details


def test_a_store_of_another_kind_keeps_its_settings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
[stores.archive]
driver = "s3"
bucket = "images"
ca_file = "keys/ca.pem"
access_key_id = "me"
secret_access_key_secret = "s3_key"
[stores.shelf]
driver = "of-a-stranger"
path = "shelf"
anything = [1]
[secrets.s3_key]
env = "S3_KEY"
""",
    )
    stores = load_config(path, Path("/"), environ(tmp_path)).stores
    assert stores["archive"].path is None
    assert stores["archive"].settings == {
        "bucket": "images",
        "ca_file": str(tmp_path / "keys" / "ca.pem"),
        "access_key_id": "me",
        "secret_access_key_secret": "s3_key",
    }
    assert stores["shelf"] == StoreConfig("shelf", "of-a-stranger", tmp_path / "shelf", {"anything": [1]})
