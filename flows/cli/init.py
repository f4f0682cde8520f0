"""planvirt init"""

from pathlib import Path

import click

from planvirt.errors import Exit, UsageError

_CONFIG = """\
# Where hosts, stores and secrets are. Plans only name them.

[hosts.local]
uri = "auto"            # qemu:///system where it answers, else qemu:///session

[stores.local]
driver = "directory"    # images go to a folder of planvirt's own; 'path' names another one

[plans]
allow_paths = []        # folders outside this repository that plans may use images and kernels of
"""

_PLAN = """\
planvirt: 1
name: starter
description: One machine from an image, and a snapshot of it

inputs:
  memory: {type: string, default: 512 MiB, description: How much memory the machine gets}

defaults:
  retry: {attempts: 3, delay: 5s, backoff: 2, max_delay: 1m}
  timeout: 10m
on_failure: rollback

images:
  base:
    source: ./base.qcow2      # put an image beside this file, for instance a cloud image of your distribution
    # checksum: sha256:…      # what its publisher says it is

instances:
  one:
    image: base
    vcpus: 1
    memory: "{{ inputs.memory }}"
    disks: [10 GiB]
    networks: [default]

operations:
  - id: keep
    action: snapshot
    instances: [one]
    with: {upload: {store: local, name: "{{ instance.name }}-{{ run.date }}"}}
"""


@click.command("init")
@click.argument("folder", default=".", type=click.Path(file_okay=False))
def command(folder: str) -> int:
    """Write a starter plan and a configuration.

    With the plan comes its schema for editors. Nothing in FOLDER is overwritten.
    """
    from planvirt.schemas import schema_text

    place = Path(folder)
    files = {
        place / "planvirt.toml": _CONFIG,
        place / "plans" / "plan.schema.json": schema_text("plan"),
        place / "plans" / "starter.yaml": f"# yaml-language-server: $schema=./plan.schema.json\n{_PLAN}",
    }
    there = [str(path) for path in files if path.exists()]
    if there:
        raise UsageError(
            f"cannot begin in {place}: there is {', '.join(there)} already", resolution="name another folder"
        )
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise UsageError(f"cannot write {path}", details=error.strerror or str(error)) from error
        click.echo(f"wrote {path}")
    plan = place / "plans" / "starter.yaml"
    click.echo(f"\nnext: put an image at {plan.parent / 'base.qcow2'}, then 'planvirt preview {plan}'")
    return Exit.OK
