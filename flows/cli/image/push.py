"""planvirt image push FILE STORE"""

from pathlib import Path

import click

from flows.cli.common import configuration, output_option, print_json, size
from flows.cli.image.words import progress
from planvirt.errors import Exit


@click.command("push")
@click.argument("file", type=click.Path())
@click.argument("store")
@click.option("--name", help="The image's name (default: the file's, without its ending).")
@click.option("--format", "format_", type=click.Choice(["qcow2", "raw"]), help="Refuse the file if it is another one.")
@click.option(
    "--checksum", metavar="sha256:HEX", help="Refuse the file if its checksum is another one (or sha512:HEX)."
)
@output_option
@click.pass_obj
def command(
    config: str | None, file: str, store: str, name: str | None, format_: str | None, checksum: str | None, output: str
) -> int:
    """Bring an image file into a store.

    The file counts as hostile until it is checked: what it really is, its checksum, and that it refers to no other
    file. The store's copy is compared with what was read. Pushing the same file under the same name again does nothing.
    """
    from flows import documents
    from flows.image_files import push
    from flows.world import World

    path = Path(file)
    with World(configuration(config)) as world:
        place = world.store(store)
        with progress(f"pushing {path.name}") as deadline:
            stored, new = push(
                path, place, name=name or path.stem, format=format_, checksum=checksum, deadline=deadline
            )
    if output == "json":
        print_json({"image": documents.image(stored), "pushed": new})
    elif new:
        click.echo(f"{store}/{stored.id}: {stored.name}, {stored.format}, {size(stored.size)}, {stored.checksum}")
    else:
        click.echo(f"{store}/{stored.id} is this very image already, named {stored.name}")
    return Exit.OK
