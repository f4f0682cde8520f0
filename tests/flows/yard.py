"""Plans prepared and carried out in this process, on simulated hosts, without Prefect."""

import time
from pathlib import Path

from drivers.simulated import SimulatedCompute
from flows.call import RunFacts
from flows.context import Event, RunContext, timestamp
from flows.executor import ThreadExecutor
from flows.preemption import preemptions
from flows.prepare import Prepared, prepare_destroy, prepare_run
from flows.preview import Preview, check
from flows.records import step_records
from flows.rollback import roll_back
from flows.saga import carry_out
from flows.world import World
from planvirt.config import Config, HostConfig, StoreConfig
from planvirt.journal.journal import Journal
from planvirt.journal.records import RunRecord
from planvirt.journal.transitions import RunState
from planvirt.load import load_plan
from planvirt.plan import Plan
from planvirt.secret import Secret

HOSTS = ("kvm1", "kvm2")


class Yard:
    """Two hosts and a journal. Plans are given as the text behind their first line; all are named `shop`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = Config(
            home=folder,
            hosts={name: HostConfig(name, driver="simulated", path=folder / f"{name}.json") for name in HOSTS},
            stores={"local": StoreConfig("local", path=folder / "store")},
            default_host="kvm1",
            journal_url=f"sqlite:///{folder}/journal.sqlite",
        )
        self.hosts = {name: SimulatedCompute.in_file(name, folder / f"{name}.json") for name in HOSTS}
        self.kvm1, self.kvm2 = self.hosts.values()
        self.journal = Journal(self.config.journal_url)
        self.runs = 0
        self.secrets: dict[str, Secret] = {}
        self.heard: list[str] = []  # what whoever watches the runs was told

    def plan(self, text: str, name: str = "shop") -> Plan:
        path = self.folder / f"{name}.yaml"
        path.write_text(f"planvirt: 1\nname: {name}\n{text}")
        return load_plan(path, config=self.config)

    def prepare(self, text: str, *, destroy: bool = False, name: str = "shop") -> Prepared:
        plan = self.plan(text, name)
        with World(self.config) as world:
            return (prepare_destroy if destroy else prepare_run)(plan, world, self.journal)

    def preview(self, text: str, *, destroy: bool = False, name: str = "shop") -> Preview:
        return self.prepare(text, destroy=destroy, name=name).preview

    def run(self, text: str, *, name: str = "shop") -> RunState:
        """Carry the plan out. Raises Refused."""
        return self.carry_out(self.prepare(text, name=name))

    def destroy(self, text: str = "", *, name: str = "shop") -> RunState:
        """Destroy what the plan made. Raises Refused."""
        return self.carry_out(self.prepare(text, destroy=True, name=name))

    def roll_back(self, run: str) -> RunState:
        """Undo a run that was kept."""
        self.journal.take_over(run, "rollback asked for")
        with World(self.config) as world:
            facts = RunFacts(run, "shop", "", timestamp(time.time()))
            context = RunContext(facts, self.journal, world, print, undo_pause=0.0)
            executor = ThreadExecutor()
            state = roll_back(context, executor, "rollback asked for")
            executor.close()
        return state

    def left(self) -> dict[str, list[str]]:
        """For each host its instances, set-aside ones too, and its volumes as PLAN.INSTANCE.DISK."""
        found = {}
        for name, host in self.hosts.items():
            with host.world() as world:
                found[name] = sorted([*world.instances, *(".".join(key.split(".")[:3]) for key in world.volumes)])
        return {name: things for name, things in found.items() if things}

    def volume(self, instance: str, disk: str) -> str:
        """The full name of the one volume of that kind on kvm1."""
        with self.kvm1.world() as world:
            (found,) = [key for key in world.volumes if key.split(".")[1:3] == [instance, disk]]
        return found

    def carry_out(self, prepared: Prepared) -> RunState:
        """Carry out what was prepared. Raises Refused."""
        check(prepared.preview, prepared.kind)
        plan, steps = prepared.plan, prepared.preview.steps
        self.runs += 1
        run = f"r{self.runs}"
        self.journal.begin(
            RunRecord(run, prepared.kind, plan.name, "", "", "", None, {}, plan.on_failure.value),
            step_records(plan.name, steps),
            preemptions(plan.name, steps),
        )
        with World(self.config) as world:
            facts = RunFacts(run, plan.name, "", timestamp(time.time()), plan.images)
            context = RunContext(
                facts, self.journal, world, self._hear, plan=plan, secrets=self.secrets, undo_pause=0.0
            )
            executor = ThreadExecutor()
            state, error = carry_out(context, steps, prepared.preview.parallel, plan.on_failure, executor)
            executor.close()
        print(state, error)
        return state

    def _hear(self, event: Event) -> None:
        print(event)
        self.heard.append(str(event))
