"""The Glance store behind a real Keystone: how it gets in, and what it says when it does not."""

import io
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from drivers.again import Busy
from drivers.errors import DriverError, Transient
from drivers.glance.service import GlanceSettings
from drivers.glance.store import GlanceStore
from planvirt.deadline import Deadline
from planvirt.errors import ConfigError, PlanvirtError
from planvirt.secret import Secret
from tests.drivers.glance_server import Cloud, Glance
from tests.drivers.hostile_proxy import Exchange, hostile_proxy
from tests.drivers.ports import free_ports

pytestmark = pytest.mark.real

NOISE = random.Random(1).randbytes((1 << 20) + 17)
SECRETS = ("correct horse", "battery staple", "let me in")


@pytest.fixture
def site(glance_server: Glance, cloud: Cloud) -> Iterator[Glance]:
    """The project of the cloud's user, seen from beside Keystone; nothing is left in it."""
    site = replace(glance_server, project=cloud.project)
    yield site
    assert site.images() == []


def put(store: GlanceStore) -> None:
    store.create("one", name="web", format="raw", properties={"planvirt_plan": "tier"})
    store.upload("one", io.BytesIO(NOISE), None, Deadline())


def message(error: PlanvirtError) -> str:
    """All that a user gets to see of an error. No secret is ever in it."""
    text = " ".join(error.as_dict().values())
    assert not any(secret in text for secret in SECRETS)
    return text


@pytest.mark.parametrize("way", ["password", "application credential"])
def test_a_store_in_a_cloud(cloud: Cloud, site: Glance, way: str) -> None:
    settings = cloud.settings() if way == "password" else cloud.credential_settings()
    store = GlanceStore("cloud", settings, cloud.secrets)
    store.check()
    put(store)
    (image,) = site.images()
    assert (image["owner"], image["visibility"], image["status"]) == (cloud.project, "private", "active")
    again = GlanceStore("cloud", settings, cloud.secrets)
    found = again.find("web")
    assert found is not None and found.id == "one" and list(again.list()) == [found]
    with again.open("one") as file:
        assert file.read() == NOISE
    assert again.verify("one", Deadline()) == found
    again.delete("one")


@pytest.mark.parametrize("change", [("/v3", ""), ("/v3", "/"), ("/v3", "/v3/")])
def test_keystone_may_be_named_without_its_version(cloud: Cloud, site: Glance, change: tuple[str, str]) -> None:
    GlanceStore("cloud", cloud.settings(auth_url=cloud.auth_url.replace(*change)), cloud.secrets).check()


def test_the_image_service_may_be_named_beside_keystone(cloud: Cloud, site: Glance) -> None:
    far = GlanceStore("cloud", cloud.settings(region="south", url=cloud.image_url), cloud.secrets)
    far.check()


@pytest.mark.parametrize(
    ("change", "words", "wanted"),
    [
        ({"password_secret": "wrong"}, "Keystone says 401", "password"),
        ({"username": "nobody"}, "Keystone says 401", "user"),
        ({"project": "nowhere"}, "Keystone says 401", "project"),
        ({"user_domain": "nowhere"}, "Keystone says 401", "user"),
        ({"region": "south"}, "catalog has no image service", "region"),
        ({"region": "west"}, "catalog has no image service", "region"),
        ({"interface": "internal"}, "catalog has no image service", "interface"),
        ({"username": "reader"}, "add_image", "role member"),
    ],
)
def test_what_does_not_fit_is_told(
    cloud: Cloud, site: Glance, change: Mapping[str, Any], words: str, wanted: str
) -> None:
    with pytest.raises(DriverError) as caught:
        GlanceStore("cloud", cloud.settings(**change), cloud.secrets).check()
    assert words in message(caught.value) and wanted in caught.value.resolution
    assert not isinstance(caught.value, Transient)


def test_an_application_credential_with_another_secret_is_refused(cloud: Cloud, site: Glance) -> None:
    settings = replace(cloud.credential_settings(), application_credential_secret="wrong")  # noqa: S106 - a name
    with pytest.raises(DriverError, match="Keystone says 401") as caught:
        GlanceStore("cloud", settings, cloud.secrets).check()
    assert "application credential" in message(caught.value)


def test_a_user_without_a_password_is_a_fault_of_the_configuration(cloud: Cloud) -> None:
    with pytest.raises(ConfigError, match="password_secret") as caught:
        GlanceStore("cloud", cloud.settings(password_secret=None), cloud.secrets).check()
    assert "[stores.cloud]" in caught.value.resolution


def test_another_server_is_no_keystone(cloud: Cloud, glance_server: Glance) -> None:
    with pytest.raises(DriverError) as caught:
        GlanceStore("cloud", cloud.settings(auth_url=glance_server.url), cloud.secrets).check()
    assert "auth_url" in message(caught.value)


def test_a_keystone_that_does_not_answer_may_come_back(cloud: Cloud) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Transient, match=f"127.0.0.1:{port}: connection refused") as caught:
        GlanceStore("cloud", cloud.settings(auth_url=f"http://127.0.0.1:{port}/v3"), cloud.secrets).check()
    message(caught.value)


def test_a_busy_keystone_may_be_asked_again(cloud: Cloud, site: Glance) -> None:
    with hostile_proxy(int(cloud.auth_url.split(":")[2].split("/")[0])) as proxy:
        store = GlanceStore("cloud", cloud.settings(auth_url=f"http://127.0.0.1:{proxy.port}/v3"), cloud.secrets)
        proxy.on("POST", "/auth/tokens", lambda exchange: exchange.refuse(503, {"Retry-After": "9"}))
        with pytest.raises(Busy, match=r"Keystone says 503 .*in 9 s") as caught:
            store.check()
        assert caught.value.after == 9
        proxy.on("POST", "/auth/tokens", lambda exchange: exchange.pass_on(lose_answer=True))
        with pytest.raises(Transient):
            store.check()
        store.check()
        assert proxy.unused == []


def test_a_token_that_is_no_longer_good_is_renewed(cloud: Cloud, site: Glance) -> None:
    tokens: list[str] = []

    def expired(exchange: Exchange) -> None:
        tokens.append(exchange.handler.headers["X-Auth-Token"])
        exchange.refuse(401)

    def noted(exchange: Exchange) -> None:
        tokens.append(exchange.handler.headers["X-Auth-Token"])
        exchange.pass_on()

    with hostile_proxy(int(cloud.image_url.split(":")[2])) as proxy:
        store = GlanceStore("cloud", cloud.settings(url=f"http://127.0.0.1:{proxy.port}"), cloud.secrets)
        put(store)
        proxy.on("GET", "/v2/images", expired)
        proxy.on("GET", "/v2/images", noted)
        assert [image.id for image in store.list()] == ["one"]
        assert len(set(tokens)) == 2
        store.delete("one")
        store.create("two", name="web", format="raw", properties={})
        proxy.on("PUT", "/file$", expired)  # the data is read already and cannot be sent again
        with pytest.raises(DriverError, match="401"):
            store.upload("two", io.BytesIO(NOISE), None, Deadline())
        assert store.upload("two", io.BytesIO(NOISE), None, Deadline()).size == len(NOISE)
        store.delete("two")
        assert proxy.unused == []


class Counted(Mapping[str, Secret]):
    """Secrets that know who was asked for."""

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self.asked: list[str] = []
        self._secrets = secrets

    def __getitem__(self, name: str) -> Secret:
        self.asked.append(name)
        return self._secrets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)


def test_secrets_are_read_when_they_are_needed_and_appear_nowhere(
    cloud: Cloud, site: Glance, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = Counted(cloud.secrets)
    store = GlanceStore("cloud", cloud.settings(), secrets)
    assert secrets.asked == []
    with caplog.at_level(logging.DEBUG):
        put(store)
        store.delete("one")
    assert secrets.asked == ["password"]
    connection = store._images._service._connection
    assert connection is not None
    token = connection.session.get_token()
    assert token and token not in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)
    assert not any(secret in repr(store) + repr(cloud.settings()) for secret in SECRETS)


def test_the_environment_of_openstack_is_not_looked_at(
    cloud: Cloud, site: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_CLOUD", "OS_REGION_NAME"):
        monkeypatch.setenv(name, "elsewhere")
    GlanceStore("cloud", cloud.settings(), cloud.secrets).check()


def test_settings_are_the_keys_of_the_schema() -> None:
    from planvirt.schemas import config_schema

    described = set(config_schema()["$defs"]["glance_store"]["properties"]) - {"driver"}
    assert described == set(GlanceSettings.__dataclass_fields__)
