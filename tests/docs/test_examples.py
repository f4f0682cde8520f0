"""What the documents show is true: plans and configurations are valid, commands exist, links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from docs.generate import anchor
from flows.cli import COMMANDS, program
from planvirt.config import Config, HostConfig, SecretConfig, StoreConfig, load_config
from planvirt.document import parse
from planvirt.load import check_plan
from planvirt.schema import check_shape
from planvirt.schemas import plan_schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in re.finditer(r"^```([\w ]+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])


# Plans


def config(home: Path) -> Config:
    """The hosts, stores, secrets and variables that the documents speak of."""
    return Config(
        home=home,
        hosts={name: HostConfig(name, driver="simulated") for name in ("local", "kvm1", "kvm2")},
        stores={name: StoreConfig(name) for name in ("local", "archive")},
        secrets={"root_hash": SecretConfig("root_hash", env="ROOT_HASH")},
        env=("STAGE",),
    )


def written(block: Block, folder: Path) -> Path:
    """The plan in a file, with empty files of the names that it mentions."""
    for name in re.findall(r"(?<![\w.])\./[\w./-]+", block.text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "plan.yaml").write_text(block.text)
    return folder / "plan.yaml"


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_plan_is_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE", "test")
    document = parse(block.text)
    assert document.problems == ()
    if "planvirt" not in document.data:  # a piece of a plan: its words are right, whatever it refers to
        assert check_shape({"planvirt": 1, "name": "piece", **document.data}, plan_schema()) == ()
        return
    assert check_plan(written(block, tmp_path), config(tmp_path)) == ()


@pytest.mark.parametrize("block", blocks("yaml wrong"), ids=str)
def test_a_wrong_plan_tells_what_the_page_says(block: Block, tmp_path: Path) -> None:
    problems = check_plan(written(block, tmp_path), config(tmp_path))
    assert problems
    for problem in problems:
        assert f":{problem.line}:{problem.column}: {problem.message}\n    → {problem.hint}\n" in block.page.read_text()


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "planvirt.toml").write_text(block.text)
    assert load_config(tmp_path / "planvirt.toml", tmp_path, {}).path is not None


# Commands


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `planvirt` of every call in a page."""
    for block in blocks("console", "sh"):
        if block.page == page:
            text = block.text.replace("\\\n", " ")
            lines = re.findall(r"^\$ (.*)$", text, re.MULTILINE) if block.language == "console" else text.splitlines()
            for line in lines:
                yield from _calls(line)
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for inline in re.findall(r"`(planvirt [^`]+)`", prose):
        yield from _calls(inline)


def _calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for place, word in enumerate(words):
        if Path(word).name == "planvirt":
            rest = words[place + 1 :]
            end = next((number for number, each in enumerate(rest) if set(each) <= set("();<>|&")), len(rest))
            yield rest[:end]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for words in command_lines(page):
        problem = _wrong(list(words))
        assert problem is None, f"planvirt {' '.join(words)}: {problem}"


def _wrong(words: list[str]) -> str | None:
    """What is wrong with a call, if anything."""
    if words[:1] == ["--config"]:
        del words[:2]
    command: click.Command = program
    context = click.Context(program)
    for word in words:
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        if word.startswith("-") and word.split("=")[0] not in known:
            return f"there is no option {word}"
        if isinstance(command, click.Group) and not word.startswith("-"):
            inner = command.get_command(context, word)
            if inner is None and word not in ("COMMAND", "…"):
                return f"there is no command {word}; there are {', '.join(COMMANDS)}"
            command = inner or command
    return None


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            path, _, place = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not place or place in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    text: Any = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


# Names of files


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_and_functions_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`([\w.]+/[\w./-]+\.\w+|\w+\.(?:py|toml|txt))`", text):
        assert "NAME" in path or path == "planvirt.toml" or (ROOT / path).exists(), path
    for word, path in re.findall(r"`(\w+)`\s+in\s+`([\w/]+\.py)`", text):
        assert re.search(rf"^ *(?:def|class) {word}\b|^{word}\b.* = ", (ROOT / path).read_text(), re.MULTILINE), word
