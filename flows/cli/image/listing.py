"""planvirt image list"""

import fnmatch

import click

from drivers.image_store import StoredImage
from flows.cli.common import configuration, output_option, print_json, print_table, size
from flows.cli.image.words import when
from planvirt.errors import Exit, PlanvirtError


@click.command("list")
@click.option("--store", help="Only this store.")
@click.option("--name", "pattern", metavar="PATTERN", help="Only images of this name, such as 'web-*'.")
@click.option("--plan", help="Only images that runs of this plan have made.")
@output_option
@click.pass_obj
def command(config: str | None, store: str | None, pattern: str | None, plan: str | None, output: str) -> int:
    """List the images of every configured store, newest first."""
    from flows import documents
    from flows.cli import show_error
    from flows.world import World

    settings = configuration(config)
    found: list[StoredImage] = []
    errors: list[PlanvirtError] = []
    with World(settings) as world:
        for name in [store] if store else settings.stores:
            try:
                found += world.store(name).list()
            except PlanvirtError as error:
                errors.append(error)
    shown = [image for image in found if _wanted(image, pattern, plan)]
    for met in errors:
        show_error(met)
    if output == "json":
        print_json(documents.images(shown))
    elif shown:
        print_table(
            ("IMAGE", "NAME", "STORE", "STATUS", "FORMAT", "SIZE", "CREATED", "CHECKSUM"),
            [
                (
                    item.id,
                    item.name,
                    item.store,
                    item.status,
                    item.format,
                    size(item.size),
                    when(item.created),
                    (item.checksum or "-")[:23],
                )
                for item in shown
            ],
        )
    elif not errors:
        click.echo("there are no images" if not found else f"none of {len(found)} images is such a one")
    return errors[0].exit if errors else Exit.OK


def _wanted(image: StoredImage, pattern: str | None, plan: str | None) -> bool:
    named = pattern is None or fnmatch.fnmatchcase(image.name, pattern)
    return named and (plan is None or image.properties.get("planvirt_plan") == plan)
