"""planvirt image show STORE/IMAGE"""

import click

from flows.cli.common import configuration, output_option, print_json, size
from flows.cli.image.words import when
from planvirt.errors import Exit


@click.command("show")
@click.argument("image", metavar="STORE/IMAGE")
@output_option
@click.pass_obj
def command(config: str | None, image: str, output: str) -> int:
    """Show all that is known of an image.

    IMAGE is its id, or its name: the newest image of that name then. What planvirt has noted in it tells which plan,
    run, instance and disk it comes from.
    """
    from flows import documents
    from flows.stored_images import stored_image, told
    from flows.world import World

    with World(configuration(config)) as world:
        found = stored_image(world, image)
    if output == "json":
        print_json({"image": documents.image(found)})
        return Exit.OK
    rows = [
        ("image", f"{found.store}/{found.id}"),
        ("name", found.name),
        ("status", found.status if found.status == "active" else f"{found.status}: it has no content yet"),
        ("format", found.format),
        ("size", "-" if found.size is None else f"{size(found.size)} ({found.size} bytes)"),
        ("checksum", found.checksum or "-"),
        ("created", when(found.created)),
        *told(found),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(_printable(f"{name.ljust(width)}  {value}"))
    return Exit.OK


def _printable(text: str) -> str:
    """Others may write to a store: what they have put into a record must not take over the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
