"""planvirt instances"""

import click

from drivers.compute import InstanceFacts
from flows.cli.common import configuration, output_option, print_json, print_table
from planvirt.errors import Exit, PlanvirtError


@click.command("instances")
@click.option("--plan", help="Only the instances of this plan.")
@click.option("--all", "everything", is_flag=True, help="Also instances that planvirt did not make.")
@output_option
@click.pass_obj
def command(config: str | None, plan: str | None, everything: bool, output: str) -> int:
    """List the instances on every configured host."""
    from dataclasses import replace

    from flows import documents
    from flows.cli import show_error
    from flows.world import World
    from planvirt.states import State

    settings = configuration(config)
    found: list[InstanceFacts] = []
    errors: list[PlanvirtError] = []
    with World(settings) as world:
        for name in settings.hosts:
            try:
                host = world.host(name)
                for item in host.instances():
                    mine = item.mark is not None and plan in (None, item.mark.plan)
                    if mine or (everything and plan is None):
                        running = item.state == State.RUNNING and item.mark is not None
                        found.append(replace(item, addresses=tuple(host.addresses(item.name))) if running else item)
            except PlanvirtError as error:
                errors.append(error)
    for met in errors:
        show_error(met)
    if output == "json":
        print_json(documents.instances(found))
    elif found:
        print_table(
            ("INSTANCE", "HOST", "STATE", "PLAN", "RUN", "ADDRESSES"),
            [
                (
                    item.name,
                    item.host,
                    item.state.value,
                    item.mark.plan if item.mark else "-",
                    item.mark.run if item.mark else "-",
                    ", ".join(item.addresses) or ("set aside" if item.set_aside else "-"),
                )
                for item in found
            ],
        )
    elif not errors:
        others = "" if everything else " that planvirt made (--all shows others)"
        click.echo("there are no instances" + (others if plan is None else f" of plan {plan}"))
    return errors[0].exit if errors else Exit.OK
