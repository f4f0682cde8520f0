"""Builds the images that a plan names, and reads references to images."""

import re

from planvirt.build import Build
from planvirt.document import pointer_join
from planvirt.paths import PathRefused
from planvirt.plan import Deferred, Image
from planvirt.problems import did_you_mean
from planvirt.section import Section
from planvirt.web import AddressRefused, check_address, is_address

_STORED = re.compile(r"([a-z][a-z0-9-]*)/([^/\s][^\s]*)")


def build_images(build: Build) -> dict[str, Image]:
    """All images without a problem, by name."""
    images = {}
    for name, entry in build.mapping("images").items():
        raw = Section(entry, pointer_join("/images", name), build.problems)
        section = build.renderer.section(raw, "image")
        source = _source(section, build)
        if source is not None:
            checksum = section.get("checksum")
            images[name] = Image(name, source, checksum.lower() if checksum else None, section.get("format"))
    return images


def _source(section: Section, build: Build) -> str | None:
    text, at = section.get("source"), section.at("source")
    if text is None:
        return None
    if is_address(text):
        return _address(text, section, build)
    if text.startswith(("/", "./", "../")):
        try:
            return str(build.bounds.resolve(text))
        except PathRefused as refused:
            build.problems.add(at, str(refused), refused.hint)
    elif match := _STORED.fullmatch(text):
        if match[1] not in build.config.stores and (build.bounds.folder / text).exists():
            build.problems.add(at, f"unknown image store '{match[1]}'", f"did you mean './{text}'?")
        else:
            build.check_store(match[1], at)
        return str(text)
    else:
        hint = f"did you mean './{text}'?" if "/" not in text else "start a path with './', '../' or '/'"
        message = "an image's source is a path that starts with './', '../' or '/', STORE/IMAGE, or https://…"
        build.problems.add(at, message, hint)
    return None


def _address(text: str, section: Section, build: Build) -> str | None:
    """An address of the web. What comes from there is known only by its checksum."""
    at = section.at("source")
    try:
        check_address(text)
    except AddressRefused as refused:
        build.problems.add(at, str(refused), refused.hint)
        return None
    if "checksum" in section.data:
        return text
    if not build.problems.is_broken(section.at("checksum")):
        hint = "add 'checksum: sha256:…' or 'sha512:…', as its publisher gives it"
        build.problems.add(at, "an image from the web needs a checksum", hint)
    return None


def image_of(section: Section, build: Build) -> str | Deferred | None:
    """The image that an instance names, checked; None when it names none or a wrong one."""
    value = section.get("image")
    return value if value is None else checked_image(value, section.at("image"), build)


def checked_image(value: str | Deferred, at: str, build: Build) -> str | Deferred | None:
    """A reference to an image, with what is wrong with it reported; None then."""
    if isinstance(value, Deferred):
        return value
    if value in build.names.images:
        return str(value)
    if match := _STORED.fullmatch(value):
        build.check_store(match[1], at)
        return str(value)
    if value.startswith(("/", "./", "../")):
        hint = "give the path as the 'source' of an entry of 'images', and name that here"
        build.problems.add(at, "an image is named here, not its path", hint)
    else:
        hint = did_you_mean(value, build.names.images) or "add it to 'images', or write STORE/IMAGE"
        build.problems.add(at, f"unknown image '{value}'", hint)
    return None
