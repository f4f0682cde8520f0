"""Where secrets come from: files and environment variables that the operator's configuration names."""

from collections.abc import Iterable, Iterator, Mapping

from planvirt.config import Config, SecretConfig
from planvirt.errors import ConfigError
from planvirt.graph import Step, deferreds
from planvirt.secret import Redactor, Secret


class ConfiguredSecrets(Mapping[str, Secret]):
    """The configured secrets by name; each is read when a plan first uses it. Raises ConfigError when it cannot be."""

    def __init__(self, config: Config, environ: Mapping[str, str], redactor: Redactor) -> None:
        self._config = config
        self._environ = environ
        self._redactor = redactor

    def __getitem__(self, name: str) -> Secret:
        text = self._read(self._config.secrets[name])
        self._redactor.learn(text)
        return Secret(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._config.secrets)

    def __len__(self) -> int:
        return len(self._config.secrets)

    def check(self, steps: Iterable[Step]) -> None:
        """Raise ConfigError now for a secret that one of the steps will need and that cannot be read."""
        for step in steps:
            boot = step.instance.boot
            for deferred in deferreds([dict(step.arguments), boot.cmdline if boot else ""]):
                for name in deferred.names:
                    root, _, secret = name.partition(".")
                    if root == "secrets" and secret in self:
                        self[secret]

    def _read(self, source: SecretConfig) -> str:
        if source.env is not None:
            if source.env not in self._environ:
                raise ConfigError(
                    f"cannot read secret {source.name}: the environment has no {source.env}",
                    resolution=f"set {source.env}, or change [secrets.{source.name}] in planvirt.toml",
                )
            return self._environ[source.env]
        try:
            return source.file.read_text().rstrip("\n") if source.file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read secret {source.name} from {source.file}",
                details=str(error),
                resolution=f"check the file, or change [secrets.{source.name}] in planvirt.toml",
            ) from error
