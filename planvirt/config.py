"""The operator's configuration, planvirt.toml: where hosts, stores and secrets are. A plan only names them."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planvirt.errors import ConfigError, Problem

FILE_NAME = "planvirt.toml"
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HostConfig:
    """A hypervisor. `uri` is "auto" for qemu:///system where it answers, else qemu:///session.

    `pool` is the storage pool that planvirt keeps its volumes in; it is made at `pool_path` when it does not exist.
    """

    name: str
    driver: str = "libvirt"
    uri: str = "auto"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    pool: str = "planvirt"
    pool_path: Path | None = None
    path: Path | None = None  # the file of a simulated host


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """An image store. `path` is the folder of a directory store, `settings` what other drivers read.

    A setting whose name ends in `_secret` names an entry of `secrets`; one whose name ends in `_file` is a whole path.
    """

    name: str
    driver: str = "directory"
    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecretConfig:
    """Where a secret comes from: an environment variable or a file. Exactly one is given."""

    name: str
    env: str | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """All of planvirt.toml, with its defaults filled in. `home` is where planvirt keeps its data."""

    home: Path
    path: Path | None = None
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)
    stores: Mapping[str, StoreConfig] = field(default_factory=dict)
    secrets: Mapping[str, SecretConfig] = field(default_factory=dict)
    default_host: str = "local"
    default_store: str = "local"
    journal_url: str = ""
    env: tuple[str, ...] = ()  # environment names a plan may read
    allow_paths: tuple[Path, ...] = ()  # folders outside the plan's repository that a plan may use files of
    extra: Mapping[str, Any] = field(default_factory=dict)


class InvalidConfig(ConfigError):
    """The configuration file has problems; all of them are here."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"cannot use {path}: {count}",
            details="\n".join(_line(path, problem) for problem in problems),
            resolution="mend the file; 'planvirt schema config' says what it can hold",
        )
        self.path = path
        self.problems = problems


def _line(path: Path, problem: Problem) -> str:
    hint = f" ({problem.hint})" if problem.hint else ""
    return f"{path}:{problem.line}:{problem.column}: {problem.message}{hint}"


def load_config(explicit: Path | None, start: Path, environ: Mapping[str, str]) -> Config:
    """The operator's configuration, or its defaults where there is no file.

    Looked for in this order: the explicit path, $PLANVIRT_CONFIG, planvirt.toml in `start` and the folders above it,
    the user's configuration folder. Raises ConfigError.
    """
    home = _home(environ)
    path = _find(explicit, start, environ)
    if path is None:
        return _config({}, None, home)
    text = _read(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(path, (_syntax_problem(error, text),)) from error
    if problems := _problems(data, text):
        raise InvalidConfig(path, problems)
    return _config(data, path, home)


def _home(environ: Mapping[str, str]) -> Path:
    if given := environ.get("PLANVIRT_HOME"):
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("planvirt"))


def _find(explicit: Path | None, start: Path, environ: Mapping[str, str]) -> Path | None:
    if explicit is not None:
        return explicit.expanduser()
    if given := environ.get("PLANVIRT_CONFIG"):
        return Path(given).expanduser()
    for folder in (start.absolute(), *start.absolute().parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    import platformdirs

    user = Path(platformdirs.user_config_dir("planvirt")) / FILE_NAME
    return user if user.is_file() else None


def _read(path: Path) -> str:
    brief, resolution = f"cannot read the configuration {path}", "check --config and $PLANVIRT_CONFIG"
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(brief, details="there is no such file", resolution=resolution) from error
    except OSError as error:
        raise ConfigError(brief, details=(error.strerror or str(error)).lower(), resolution=resolution) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(brief, details="it is larger than 1 MiB", resolution=resolution)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(brief, details="it is not UTF-8 text", resolution="save the file as UTF-8") from error


def _syntax_problem(error: tomllib.TOMLDecodeError, text: str) -> Problem:
    message = re.sub(r" \(at (line \d+, column \d+|end of document)\)$", "", str(error))
    found = re.search(r"\(at line (\d+), column (\d+)\)$", str(error))
    line, column = (int(found[1]), int(found[2])) if found else (text.count("\n") + 1, 1)
    return Problem(line, column, "", f"malformed TOML: {message[:1].lower()}{message[1:]}")


def _problems(data: Mapping[str, Any], text: str) -> tuple[Problem, ...]:
    from planvirt.schema import check_shape
    from planvirt.schemas import config_schema

    found = [
        Problem(*_place(fault.pointer, text), fault.pointer, fault.message, fault.hint)
        for fault in check_shape(data, config_schema())
    ]
    return tuple(sorted([*found, *_references(data, text)]))


def _references(data: Mapping[str, Any], text: str) -> Iterator[Problem]:
    """The default host and store, and the secrets of stores, must be among those that are configured."""
    from planvirt.problems import did_you_mean

    yield from _store_secrets(data, text)
    plans = data.get("plans")
    for key, tables in (("default_host", "hosts"), ("default_store", "stores")):
        wanted = plans.get(key) if isinstance(plans, dict) else None
        known = data.get(tables) or {"local": {}}
        if isinstance(wanted, str) and isinstance(known, dict) and wanted not in known:
            pointer = f"/plans/{key}"
            hint = did_you_mean(wanted, known)
            yield Problem(*_place(pointer, text), pointer, f"{key} names '{wanted}', which is not in [{tables}]", hint)


def _store_secrets(data: Mapping[str, Any], text: str) -> Iterator[Problem]:
    from planvirt.problems import did_you_mean

    known = data.get("secrets", {})
    stores = data.get("stores")
    for name, store in stores.items() if isinstance(stores, dict) else ():
        for key, secret in store.items() if isinstance(store, dict) else ():
            if key.endswith("_secret") and isinstance(secret, str) and secret not in known:
                pointer = f"/stores/{name}/{key}"
                hint = did_you_mean(secret, known) or f"add a table [secrets.{secret}]"
                yield Problem(
                    *_place(pointer, text), pointer, f"{key} names '{secret}', which is not in [secrets]", hint
                )


def _place(pointer: str, text: str) -> tuple[int, int]:
    """Line and column of a key. The parser keeps no places, so the key is looked for in its table's lines."""
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
    table: list[str] = []
    best = (1, 1)
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?([^\]]+)\]", line)
        key = re.match(r"(\s*)([\w.\"'-]+)\s*=", line)
        if header:
            table = _parts(header[1])
            here, column = table, line.index("[") + 1
        elif key:
            here, column = [*table, *_parts(key[2])], len(key[1]) + 1
        else:
            continue
        common = next((i for i, (a, b) in enumerate(zip(here, tokens, strict=False)) if a != b), len(here))
        if common == len(here) and depth < common <= len(tokens):
            depth, best = common, (number, column)
    return best


def _parts(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]


def _config(data: Mapping[str, Any], path: Path | None, home: Path) -> Config:
    folder = path.absolute().parent if path else home
    hosts = {name: _host(name, table, folder) for name, table in (data.get("hosts") or {"local": {}}).items()}
    stores = {name: _store(name, table, folder, home) for name, table in (data.get("stores") or {"local": {}}).items()}
    secrets = {name: _secret(name, table, folder) for name, table in data.get("secrets", {}).items()}
    plans = data.get("plans", {})
    return Config(
        home=home,
        path=path,
        hosts=hosts,
        stores=stores,
        secrets=secrets,
        default_host=plans.get("default_host") or _only(hosts),
        default_store=plans.get("default_store") or _only(stores),
        journal_url=data.get("journal", {}).get("url") or f"sqlite:///{home / 'journal.sqlite'}",
        env=tuple(plans.get("env", ())),
        allow_paths=tuple(_path(folder, text) for text in plans.get("allow_paths", ())),
    )


def _only(tables: Mapping[str, object]) -> str:
    """The name to use where a plan gives none: the only one there is, else "local", which may not be there."""
    return next(iter(tables)) if len(tables) == 1 else "local"


def _path(folder: Path, text: str) -> Path:
    return folder / Path(text).expanduser()


def _host(name: str, table: Mapping[str, Any], folder: Path) -> HostConfig:
    values = dict(table)
    if "path" in values:
        values["path"] = _path(folder, values["path"])
    if "pool_path" in values:
        values["pool_path"] = Path(values["pool_path"])  # a folder of the host, which may be another machine
    return HostConfig(name, **values)


def _store(name: str, table: Mapping[str, Any], folder: Path, home: Path) -> StoreConfig:
    driver = table.get("driver", "directory")
    settings = {
        key: str(_path(folder, value)) if key.endswith("_file") else value
        for key, value in table.items()
        if key not in ("driver", "path")
    }
    if "path" in table:
        return StoreConfig(name, driver, _path(folder, table["path"]), settings)
    own = home / "images" if name == "local" else home / "stores" / name
    return StoreConfig(name, driver, own if driver == "directory" else None, settings)


def _secret(name: str, table: Mapping[str, Any], folder: Path) -> SecretConfig:
    file = table.get("file")
    return SecretConfig(name, table.get("env"), None if file is None else _path(folder, file))
