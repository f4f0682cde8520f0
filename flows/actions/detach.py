"""detach: take a disk or a network interface from an instance, while it runs too."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from drivers.compute import AttachedDisk, InstanceFacts
from drivers.errors import Transient
from flows.actions.action import Action, Finding
from flows.call import Call
from flows.disks import disks_of, standing_for
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.mark import read_volume_name
from planvirt.plan import Nic
from planvirt.secret import revealed

_PATIENCE = 60.0  # seconds that a guest has to let go of a device


class GuestKeepsDevice(Transient):
    """The guest did not let go of a device. It may be booting still, or use it."""


def let_go(call: Call, what: str, detach: Callable[[Deadline], None], patience: float = _PATIENCE) -> None:
    """Have a device detached, as `detach` does it. Raises GuestKeepsDevice."""
    try:
        detach(call.within(patience).deadline)
    except DeadlinePassed as error:
        call.deadline.check()
        raise GuestKeepsDevice(
            f"cannot detach {what} of {call.instance}: the guest did not let go of it within {patience:g} s",
            resolution="have the guest stop using it, or stop the instance first",
        ) from error


def do(call: Call) -> Mapping[str, Any]:
    """Detach what `with` names; nothing is done when the instance has it not.

    Without `delete` a disk stays on the host, whether it is to be kept or not, and `attach` brings it back. With
    `delete` it goes when the run commits, also one that the host was told to keep: it was named for that. Only what the
    same plan declares with `keep: true` is refused then, as it contradicts itself.
    """
    found = call.found("detach anything from")
    return _do_disk(call, found) if "disk" in call.arguments else _do_nic(call, found)


def outputs(call: Call) -> Mapping[str, Any]:
    """What a finished detach returns: the disk's name and volume, or the interface's address."""
    if "disk" in call.undo:
        return {"disk": call.undo["disk"], "volume": call.undo["device"]["volume"]}
    return {"mac": call.undo["nic"]["mac"]} if "nic" in call.undo else {}


def probe(call: Call) -> Finding:
    """Done when the instance has it no more. A guest that was asked may still be on its way."""
    found = call.facts()
    if not call.undo or found is None:
        return Finding.NOTHING
    if "nic" in call.undo:
        gone = call.undo["nic"]["mac"] not in [nic.mac for nic in found.nics]
    else:
        forgotten = not call.undo["forgets"] or call.undo["disk"] not in found.keep
        gone = call.undo["device"]["volume"] not in found.volumes and forgotten
    return Finding.DONE if gone else Finding.PARTIAL


def undo(call: Call) -> None:
    """Attach it again, as it was. A disk becomes the last one."""
    found = call.facts()
    if found is None:
        return
    if "nic" in call.undo:
        nic = Nic(**call.undo["nic"])
        call.phase(f"attach network interface {nic.mac}")
        call.compute.attach_nic(call.instance, nic)
    if "disk" in call.undo:
        _attach_again(call, found, call.undo["disk"], AttachedDisk(**call.undo["device"]))


def commit(call: Call) -> None:
    """Delete the disk if the plan says so, unless it was attached again."""
    if "disk" not in call.undo or not call.arguments.get("delete"):
        return
    volume, found = call.undo["device"]["volume"], call.facts()
    if found is None or volume not in found.volumes:
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def leftovers(record: StepRecord) -> list[str]:
    """What the instance lacks."""
    if "disk" in record.undo:
        return [f"volume {record.undo['device']['volume']} on {record.host}, a disk of {record.instance}"]
    if "nic" in record.undo:
        return [f"instance {record.instance} on {record.host} without network interface {record.undo['nic']['mac']}"]
    return []


def _do_disk(call: Call, found: InstanceFacts) -> Mapping[str, Any]:
    name, delete = str(revealed(call.arguments["disk"])), bool(call.arguments.get("delete"))
    if "disk" not in call.undo:
        disk = disks_of(found).get(name)
        if disk is None:
            return {}
        _check(call, found, name, disk, delete=delete)
        forgets = delete and name in found.keep
        call.phase("look at the disk", disk=name, device=asdict(disk), forgets=forgets)
    volume = call.undo["device"]["volume"]
    call.phase(f"detach disk {name}")
    let_go(call, f"disk {name}", lambda limit: call.compute.detach_disk(call.instance, volume, limit))
    if call.undo["forgets"]:
        call.phase(f"forget to keep disk {name}")
        call.compute.set_keep(call.instance, [disk for disk in found.keep if disk != name])
    return outputs(call)


def _check(call: Call, found: InstanceFacts, name: str, disk: AttachedDisk, *, delete: bool) -> None:
    if disk == found.disks[0]:
        raise Conflict(
            f"cannot detach disk {name} of {call.instance}: it is the boot disk",
            resolution="to have another one, rebuild the instance or restore the disk",
        )
    declared = call.spec.disks if call.spec is not None else ()
    if delete and any(own.name == name and own.keep for own in declared):
        raise Conflict(
            f"cannot delete disk {name} of {call.instance}: the plan declares it with 'keep: true'",
            resolution="take the disk out of the plan or its 'keep' away, or detach it without 'delete'",
        )


def _attach_again(call: Call, found: InstanceFacts, name: str, disk: AttachedDisk) -> None:
    if standing_for(found, disk.volume, call.run.id) is None:
        other = disks_of(found).get(name)
        if other is not None:
            raise Conflict(
                f"cannot attach disk {name} to {call.instance} again: it has another one of that name",
                details=f"volume {other.volume}",
                resolution="detach that one first",
            )
        call.phase(f"attach disk {name}")
        call.compute.attach_disk(call.instance, replace(disk, volume=_volume(call, name, disk.volume)))
    if call.undo["forgets"] and name not in found.keep:
        call.phase(f"remember to keep disk {name}")
        call.compute.set_keep(call.instance, [*found.keep, name])


def _volume(call: Call, name: str, volume: str) -> str:
    """The volume that was detached, or the copy that is there for it since a later resize of the run was undone."""
    volumes = [known.name for known in call.compute.volumes()]
    if volume in volumes:
        return volume
    made = ((known, read_volume_name(known)) for known in volumes)
    copies = [
        known
        for known, read in made
        if read is not None
        and (read[0].plan, read[0].instance, read[1], read[0].run) == (call.run.plan, call.instance, name, call.run.id)
    ]
    return copies[0] if len(copies) == 1 else volume


def _do_nic(call: Call, found: InstanceFacts) -> Mapping[str, Any]:
    if "nic" not in call.undo:
        nic = _nic(call, found)
        if nic is None:
            return {}
        call.phase("look at the network interface", nic=asdict(nic))
    mac = call.undo["nic"]["mac"]
    call.phase(f"detach network interface {mac}")
    let_go(call, f"network interface {mac}", lambda limit: call.compute.detach_nic(call.instance, mac, limit))
    return outputs(call)


def _nic(call: Call, found: InstanceFacts) -> Nic | None:
    """The interface that is meant. Raises Conflict when the network's name does not say which."""
    if "mac" in call.arguments:
        mac = str(revealed(call.arguments["mac"])).lower()
        return next((nic for nic in found.nics if nic.mac == mac), None)
    network = str(revealed(call.arguments["network"]))
    there = [nic for nic in found.nics if nic.kind != "user" and nic.source == network]
    if len(there) > 1:
        raise Conflict(
            f"cannot detach {call.instance} from {network}: it has {len(there)} network interfaces there",
            details=", ".join(str(nic.mac) for nic in there),
            resolution="name one of them: with: {mac: …}",
        )
    return next(iter(there), None)


ACTION = Action(do=do, probe=probe, undo=undo, commit=commit, leftovers=leftovers, outputs=outputs)
