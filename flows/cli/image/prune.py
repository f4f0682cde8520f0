"""planvirt image prune"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flows.cli.common import configuration, output_option, plural, print_json, print_table, size
from planvirt.errors import Exit, PlanvirtError, UsageError

if TYPE_CHECKING:
    from flows.pruning import Found, Item
    from flows.world import World
    from planvirt.journal.journal import Journal


@click.command("prune")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Only this host; as often as needed.")
@click.option("--downloads", is_flag=True, help="Also the images that were downloaded to this machine.")
@click.option(
    "--older-than", default="1h", show_default=True, metavar="TIME", help="Only what was written longer ago than that."
)
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@click.pass_obj
def command(
    config: str | None, hosts: tuple[str, ...], downloads: bool, older_than: str, dry_run: bool, yes: bool, output: str
) -> int:
    """Delete what hosts keep of images though nothing uses it.

    Those are images, kernels and initrds that no volume is built on and no instance boots from, and what imports that
    died have left. All of it can be made again. Nothing goes from a host on which a run is at work.
    """
    from flows import documents
    from flows.cli import show_error
    from flows.cli.run import confirmed
    from flows.pruning import look
    from flows.world import World
    from planvirt.journal.journal import Journal

    settings, age = configuration(config), _seconds(older_than)
    with World(settings) as world, Journal(settings.journal_url) as journal:
        for host in hosts:
            world.host(host)  # an unknown one is told before others are asked
        found = look(world, journal, hosts or tuple(settings.hosts), downloads=downloads, age=age)
        for met in found.errors:
            show_error(met)
        code = found.errors[0].exit if found.errors else Exit.OK
        if output == "text":
            _print(found)
        if dry_run or not found.unused:
            if output == "json":
                print_json(documents.pruned(found.items, {}, dry_run=dry_run))
            return code
        if not yes and not confirmed(f"delete {plural(len(found.unused), 'thing')}?"):
            return Exit.FAILED
        ended = _delete(found.unused, world, journal, age)
    if output == "json":
        print_json(documents.pruned(found.items, ended, dry_run=False))
    else:
        freed = [bytes_ for bytes_ in ended.values() if isinstance(bytes_, int)]
        failed = len(found.unused) - len(freed)
        click.echo(
            f"freed {size(sum(freed))}" + (f"; {plural(failed, 'thing')} could not be deleted" if failed else "")
        )
    return code or (Exit.OK if all(isinstance(ended.get(item), int) for item in found.unused) else Exit.FAILED)


def _seconds(text: str) -> float:
    from planvirt.units import UnitError, parse_duration

    try:
        return parse_duration(text)
    except UnitError as error:
        raise UsageError(f"cannot read --older-than: it {error}", resolution=error.hint) from error


def _print(found: "Found") -> None:
    used = sum(item.in_use for item in found.items)
    stays = [item for item in found.items if item.kept is not None and not item.in_use]
    if found.unused:
        total = size(sum(item.size for item in found.unused))
        click.echo(f"nothing uses these ({plural(len(found.unused), 'thing')}, {total}):")
        print_table(
            ("WHERE", "WHAT", "SIZE", "NAME"),
            [(item.place, item.kind, size(item.size), item.name) for item in found.unused],
        )
    elif not found.errors:
        click.echo("there is nothing to delete")
    if stays:
        click.echo("\nnothing uses these, but they stay:")
        for item in stays:
            click.echo(f"  {item.name} on {item.place}: {item.kept}")
    if used:
        click.echo(f"\n{'1 more is' if used == 1 else f'{used} more are'} in use")


def _delete(
    items: "Sequence[Item]", world: "World", journal: "Journal", age: float
) -> "dict[Item, int | PlanvirtError]":
    """Delete one after the other; what could not be deleted does not stop the others. Ctrl-C ends it early."""
    from flows.cli import show_error
    from flows.pruning import delete

    ended: dict[Item, int | PlanvirtError] = {}
    for item in items:
        try:
            ended[item] = delete(item, world, journal, age=age)
        except PlanvirtError as error:
            show_error(error)
            ended[item] = error
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            break
    return ended
