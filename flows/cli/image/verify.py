"""planvirt image verify STORE/IMAGE…"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flows.cli.common import configuration, output_option, print_json, size
from flows.cli.image.words import progress
from planvirt.errors import Exit, PlanvirtError, UsageError

if TYPE_CHECKING:
    from drivers.image_store import StoredImage
    from flows.world import World


@click.command("verify")
@click.argument("images", nargs=-1, metavar="STORE/IMAGE...")
@click.option("--all", "everything", is_flag=True, help="Every image that has a content.")
@click.option("--store", help="With --all: only those of this store.")
@output_option
@click.pass_obj
def command(config: str | None, images: tuple[str, ...], everything: bool, store: str | None, output: str) -> int:
    """Read images from their stores and compare them with their records.

    All of each is read, which can take long. Ends with 1 when one is not what its record says, or cannot be read.
    """
    from flows import documents
    from flows.cli import show_error
    from flows.world import World

    if bool(images) == everything or (store and not everything):
        raise UsageError(
            "cannot tell which images to verify", resolution="name them as STORE/IMAGE, or say --all, with --store"
        )
    ended: list[tuple[StoredImage, PlanvirtError | None]] = []
    with World(configuration(config)) as world:
        found, errors = _all(world, store) if everything else _named(world, images)
        for met in errors:
            show_error(met)
        for image in found:
            error = _verify(world, image)
            ended.append((image, error))
            if output == "text":
                _tell(image, error)
    wrong = [image for image, error in ended if error is not None]
    if output == "json":
        print_json(documents.verified(ended))
    elif not ended and not errors:
        click.echo("there are no images")
    elif wrong:
        click.echo(f"{len(wrong)} of {len(ended)} cannot be trusted")
    return errors[0].exit if errors else Exit.FAILED if wrong else Exit.OK


def _named(world: "World", references: Sequence[str]) -> "tuple[list[StoredImage], list[PlanvirtError]]":
    from flows.stored_images import active_image

    return [active_image(world, reference) for reference in dict.fromkeys(references)], []


def _all(world: "World", only: str | None) -> "tuple[list[StoredImage], list[PlanvirtError]]":
    found: list[StoredImage] = []
    errors: list[PlanvirtError] = []
    for name in [only] if only else world.config.stores:
        try:
            found += [image for image in world.store(name).list() if image.status == "active"]
        except PlanvirtError as error:
            errors.append(error)
    return found, errors


def _verify(world: "World", image: "StoredImage") -> PlanvirtError | None:
    try:
        with progress(f"{image.store}/{image.name}") as deadline:
            world.store(image.store).verify(image.id, deadline)
    except PlanvirtError as error:
        return error
    return None


def _tell(image: "StoredImage", error: PlanvirtError | None) -> None:
    from flows.cli import show_error

    sign = click.style("ok  ", fg="green") if error is None else click.style("FAIL", fg="red")
    click.echo(f"{sign} {image.store}/{image.id} {image.name} ({size(image.size)})")
    if error is not None:
        show_error(error)
