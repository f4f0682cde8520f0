"""planvirt image export STORE/IMAGE FILE"""

from pathlib import Path

import click

from flows.cli.common import configuration, output_option, print_json, size
from flows.cli.image.words import progress
from planvirt.errors import Exit


@click.command("export")
@click.argument("image", metavar="STORE/IMAGE")
@click.argument("file", type=click.Path())
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@output_option
@click.pass_obj
def command(config: str | None, image: str, file: str, force: bool, output: str) -> int:
    """Copy an image into a file.

    The copy is compared with the image's record before it gets its name, so that FILE is whole or not there. Zeros
    become holes where the file system has them.
    """
    from flows import documents
    from flows.image_files import export, refuse_present
    from flows.stored_images import active_image
    from flows.world import World

    path = Path(file)
    refuse_present(path, force=force)
    with World(configuration(config)) as world:
        found = active_image(world, image)
        with progress(f"exporting {image}") as deadline:
            export(found, world.store(found.store), path, force=force, deadline=deadline)
    if output == "json":
        print_json({"image": documents.image(found), "file": str(path.absolute())})
    else:
        click.echo(f"{path}: {found.format}, {size(found.size)}, {found.checksum}")
    return Exit.OK
