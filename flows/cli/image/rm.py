"""planvirt image rm STORE/IMAGE…"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flows.cli.common import configuration, output_option, plural, print_json, size
from planvirt.errors import Conflict, Exit, PlanvirtError

if TYPE_CHECKING:
    from drivers.image_store import StoredImage
    from flows.world import World
    from planvirt.journal.journal import Journal


@click.command("rm")
@click.argument("images", nargs=-1, required=True, metavar="STORE/IMAGE...")
@click.option("--force", is_flag=True, help="Also images that a shelved instance or an unfinished run needs.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(config: str | None, images: tuple[str, ...], force: bool, yes: bool, output: str) -> int:
    """Delete images from their stores, for good.

    Refused are images that a shelved instance comes back from, and those that a run names which has not ended or can
    still be rolled back. What hosts keep of an image stays there; `planvirt image prune` deletes that.
    """
    from flows import documents
    from flows.cli.run import confirmed
    from flows.stored_images import stored_image
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings = configuration(config)
    with World(settings) as world, Journal(settings.journal_url) as journal:
        found = list({(i.store, i.id): i for i in (stored_image(world, name, alone=True) for name in images)}.values())
        if not force:
            _check(found, world, journal)
        if output == "text":
            click.echo("this deletes for good:")
            for image in found:
                click.echo(f"  {image.store}/{image.id} {image.name} ({size(image.size)})")
        if not yes and not confirmed(f"delete {plural(len(found), 'image')}?"):
            return Exit.FAILED
        if not force:
            _check(found, world, journal)  # somebody may have shelved an instance meanwhile
        errors = {(image.store, image.id): _delete(world, image) for image in found}
    if output == "json":
        print_json(documents.removed([(image, errors[image.store, image.id]) for image in found]))
    else:
        gone = sum(error is None for error in errors.values())
        click.echo(f"deleted {plural(gone, 'image')}" + ("" if gone == len(found) else f", {len(found) - gone} not"))
    return Exit.OK if not any(errors.values()) else Exit.FAILED


def _check(images: "Sequence[StoredImage]", world: "World", journal: "Journal") -> None:
    """Raise Conflict when somebody needs one of the images; none is deleted then."""
    from flows.image_needs import needs

    known = needs(world, journal)
    why = [f"{image.store}/{image.id}: {need.who}" for image in images for need in known if need.concerns(image)]
    if why:
        raise Conflict(
            f"cannot delete {plural(len({line.partition(':')[0] for line in why}), 'image')}: still needed",
            details="\n".join(why),
            resolution="unshelve or destroy the instance, or let the run end; --force gives up the way back",
        )


def _delete(world: "World", image: "StoredImage") -> PlanvirtError | None:
    from flows.cli import show_error

    try:
        world.store(image.store).delete(image.id)
    except PlanvirtError as error:
        show_error(error)
        return error
    return None
