"""planvirt image list"""

from datetime import datetime

import click

from drivers.image_store import StoredImage
from flows.cli.common import configuration, output_option, print_json, print_table, size
from planvirt.errors import Exit, PlanvirtError


@click.group("image")
def command() -> None:
    """Look at the images in the configured stores."""


@command.command("list")
@click.option("--store", help="Only this store.")
@output_option
@click.pass_obj
def list_images(config: str | None, store: str | None, output: str) -> int:
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
    for met in errors:
        show_error(met)
    if output == "json":
        print_json(documents.images(found))
    elif found:
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
                    datetime.fromtimestamp(item.created).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                    (item.checksum or "-")[:23],
                )
                for item in found
            ],
        )
    elif not errors:
        click.echo("there are no images")
    return errors[0].exit if errors else Exit.OK
