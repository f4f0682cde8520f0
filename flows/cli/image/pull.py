"""planvirt image pull STORE/IMAGE HOST"""

import click

from flows.cli.common import configuration, output_option, print_json, size
from flows.cli.image.words import progress
from planvirt.errors import Exit


@click.command("pull")
@click.argument("image", metavar="STORE/IMAGE")
@click.argument("host")
@output_option
@click.pass_obj
def command(config: str | None, image: str, host: str, output: str) -> int:
    """Have an image on a host, so that a launch finds it there.

    The image is checked and kept as a volume that disks are built on, as the first launch from it would do. It stays
    until `planvirt image prune` finds that nothing uses it.
    """
    from flows import documents
    from flows.images import local_image
    from flows.stored_images import active_image
    from flows.world import World

    with World(configuration(config)) as world:
        compute = world.host(host)
        found = active_image(world, image)
        reference = f"{found.store}/{found.id}"
        with progress(f"fetching {image}") as deadline:
            local = local_image(reference, {}, world, deadline)
        with progress(f"sending it to {host}") as deadline:
            volume = compute.import_image(local, deadline)
    if output == "json":
        print_json(documents.pulled(host, found, volume))
    else:
        click.echo(f"{host} has {image}: {volume.name}, {size(volume.allocation)} on its disk")
    return Exit.OK
