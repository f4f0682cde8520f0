"""Turns a plan into steps that know what they wait for, in an order that is the same every time."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planvirt.errors import InvalidPlan, Problem
from planvirt.plan import Deferred, Instance, Operation, Plan, Retry
from planvirt.states import State


@dataclass(frozen=True, slots=True)
class Step:
    """One action on one instance. `operation` is None for what an instance's declared state asks for.

    `needs` are the ids of the steps that come first; a `final` step comes after everything, also after a failure.
    """

    id: str
    action: str
    instance: Instance
    operation: str | None
    arguments: Mapping[str, Any]
    needs: tuple[str, ...]
    when: bool | Deferred
    retry: Retry
    timeout: float
    final: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """All steps, each after those it needs, otherwise in the order of the file.

    `parallel` says for an operation's id on how many instances at a time it runs, where the plan limits that.
    """

    steps: tuple[Step, ...]
    parallel: Mapping[str, int]

    def step(self, id: str) -> Step:
        """The step of that id; the id is known to exist."""
        return next(step for step in self.steps if step.id == id)


def build_graph(plan: Plan) -> Graph:
    """The steps of a plan. Raises InvalidPlan for circles and for steps that would have the same id."""
    draft = _Draft(plan)
    circles = draft.circles()
    if not circles:
        draft.order_same_instance()
    draft.add_final()
    if problems := (*circles, *draft.clashes):
        raise InvalidPlan(str(plan.path), tuple(sorted(problems)))
    limits = {
        operation.id: operation.parallel
        for operation in (*plan.operations, *plan.finally_)
        if operation.parallel is not None
    }
    return Graph(tuple(draft.steps()), limits)


@dataclass(slots=True)
class _Node:
    """A step in the making; `operation` is None for a declared one. `needs` is an ordered set."""

    id: str
    action: str
    instance: Instance
    operation: Operation | None
    final: bool = False
    needs: dict[int, None] = field(default_factory=dict)


class _Draft:
    """The graph in the making. Nodes are known by their number, which is their place in the file.

    `clashes` are operations that make a step of an id that there is already.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._nodes: list[_Node] = []
        self.clashes: list[Problem] = []
        self._by_id: dict[str, int] = {}
        self._instances = {instance.name: instance for instance in plan.instances}
        self._bringing: dict[str, int] = {}  # instance -> the step that brings it to its declared state
        self._of_operation: dict[str, list[int]] = {}
        self._add_nodes()
        self._waits_for_operation = self._instances_behind_operations()
        for number in range(len(self._nodes)):
            self._add_needs(number)

    def _add_nodes(self) -> None:
        launched = {name for one in self._plan.operations if one.action == "launch" for name in one.instances}
        for instance in self._plan.instances:
            if instance.name not in launched:
                action = "terminate" if instance.state is State.ABSENT else "launch"
                self._bringing[instance.name] = self._add(f"{action}.{instance.name}", action, instance, None)
        for operation in self._plan.operations:
            numbers = self._of_operation.setdefault(operation.id, [])
            for name in operation.instances:
                number = self._add(f"{operation.id}.{name}", operation.action, self._instances[name], operation)
                numbers.append(number)
                if operation.action == "launch":
                    self._bringing.setdefault(name, number)

    def _add(self, id: str, action: str, instance: Instance, operation: Operation | None, final: bool = False) -> int:
        node = _Node(id, action, instance, operation, final)
        if id in self._by_id and operation is not None:
            message = f"the operation's id '{operation.id}' makes a second step '{id}'"
            hint = "give the operation another id"
            self.clashes.append(Problem(operation.line, operation.column, self._pointer(node), message, hint))
        self._by_id[id] = len(self._nodes)
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _targets(self, name: str) -> Iterable[int]:
        """The steps behind a name in `needs`."""
        if name in self._of_operation:
            return self._of_operation[name]
        return [self._bringing[name]] if name in self._bringing else []

    def _referred(self, *values: Any) -> Iterator[int]:
        """The steps whose results the expressions in some values read."""
        for deferred in deferreds(values):
            for name in deferred.names:
                root, _, key = name.partition(".")
                if root == "steps":
                    yield from self._of_operation.get(key, ())
                elif root == "instances" and key in self._bringing:
                    yield self._bringing[key]

    def _instance_needs(self, instance: Instance) -> Iterator[int]:
        for name in instance.needs:
            yield from self._targets(name)
        yield from self._referred(instance.image, instance.boot.cmdline if instance.boot else None)

    def _instances_behind_operations(self) -> set[int]:
        """The declared steps that wait, directly or through others, for a step of an operation."""
        dependents: dict[int, list[int]] = {}
        waiting: deque[int] = deque()
        for number, node in enumerate(self._nodes):
            if node.operation is None:
                for need in self._instance_needs(node.instance):
                    dependents.setdefault(need, []).append(number)
                    if self._nodes[need].operation is not None:
                        waiting.append(number)
        found: set[int] = set()
        while waiting:
            number = waiting.popleft()
            if number not in found:
                found.add(number)
                waiting.extend(dependents.get(number, ()))
        return found

    def _add_needs(self, number: int) -> None:
        node = self._nodes[number]
        operation = node.operation
        if operation is None:
            node.needs.update(dict.fromkeys(self._instance_needs(node.instance)))
            return
        own = self._bringing.get(node.instance.name)
        if own is not None and self._nodes[own].operation is None:
            node.needs[own] = None
        if own == number:
            node.needs.update(dict.fromkeys(self._instance_needs(node.instance)))
        if operation.needs is None:
            node.needs.update(dict.fromkeys(self._before(operation)))
        else:
            for name in operation.needs:
                node.needs.update(dict.fromkeys(self._targets(name)))
        node.needs.update(dict.fromkeys(self._referred(operation.when, operation.arguments)))

    def _before(self, operation: Operation) -> Iterable[int]:
        """What an operation without `needs` waits for: the operation before it, or all that is declared."""
        place = next(i for i, other in enumerate(self._plan.operations) if other is operation)
        for other in reversed(self._plan.operations[:place]):
            if self._of_operation[other.id]:
                return self._of_operation[other.id]
        return [
            number
            for number, node in enumerate(self._nodes)
            if node.operation is None and number not in self._waits_for_operation
        ]

    def circles(self) -> tuple[Problem, ...]:
        """One circle for each knot of steps that wait for each other."""
        return tuple(dict.fromkeys(self._circle(knot) for knot in _knots(self._edges())))

    def _edges(self) -> list[list[int]]:
        return [list(node.needs) for node in self._nodes]

    def _circle(self, knot: list[int]) -> Problem:
        path = _shortest_circle(self._edges(), knot)
        names = [self._word(number) for number in path]
        words = [name for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
        if len(words) > 1 and words[0] == words[-1]:
            words.pop()
        first = self._nodes[path[0]]
        where = first.operation or first.instance
        chain = " needs ".join((*words, words[0]))
        hint = "an operation without 'needs' waits for everything before it" if self._implicit(path) else ""
        return Problem(where.line, where.column, self._pointer(first), f"circle: {chain}", hint)

    def _pointer(self, node: _Node) -> str:
        """Where the plan has the entry of a node."""
        if node.operation is None:
            return f"/instances/{node.instance.group}"
        kind, entries = ("finally", self._plan.finally_) if node.final else ("operations", self._plan.operations)
        return f"/{kind}/{next(i for i, other in enumerate(entries) if other is node.operation)}"

    def _implicit(self, path: list[int]) -> bool:
        operations = [self._nodes[number].operation for number in path]
        return len(path) > 1 and any(one is not None and one.needs is None for one in operations)

    def _word(self, number: int) -> str:
        node = self._nodes[number]
        return node.instance.name if node.operation is None else node.operation.id

    def order_same_instance(self) -> None:
        """Two operations on one instance never run at once: those without an order keep that of the file."""
        before = _ancestors(self._edges())
        by_instance: dict[str, list[int]] = {}
        for number, node in enumerate(self._nodes):
            if node.operation is not None:
                by_instance.setdefault(node.instance.name, []).append(number)
        for numbers in by_instance.values():
            for place, later in enumerate(numbers):
                for earlier in numbers[:place]:
                    if not before[later] >> earlier & 1 and not before[earlier] >> later & 1:
                        self._nodes[later].needs[earlier] = None
                        gained = before[earlier] | 1 << earlier
                        for number in range(len(self._nodes)):
                            if number == later or before[number] >> later & 1:
                                before[number] |= gained

    def add_final(self) -> None:
        """The final operations wait for whatever nothing else waits for, then each for the one before it."""
        needed = {need for node in self._nodes for need in node.needs}
        ends = [number for number in range(len(self._nodes)) if number not in needed]
        for operation in self._plan.finally_:
            numbers = []
            for name in operation.instances:
                number = self._add(
                    f"{operation.id}.{name}", operation.action, self._instances[name], operation, final=True
                )
                self._nodes[number].needs.update(dict.fromkeys(ends))
                numbers.append(number)
            ends = numbers or ends

    def steps(self) -> Iterator[Step]:
        """The steps in order: each as soon as all it needs are there, the earlier one of the file first."""
        waiting = [len(node.needs) for node in self._nodes]
        dependents: list[list[int]] = [[] for _ in self._nodes]
        for number, node in enumerate(self._nodes):
            for need in node.needs:
                dependents[need].append(number)
        ready = [number for number, count in enumerate(waiting) if count == 0]
        while ready:
            number = heapq.heappop(ready)
            yield self._step(self._nodes[number])
            for dependent in dependents[number]:
                waiting[dependent] -= 1
                if waiting[dependent] == 0:
                    heapq.heappush(ready, dependent)

    def _step(self, node: _Node) -> Step:
        source = node.operation or node.instance
        return Step(
            id=node.id,
            action=node.action,
            instance=node.instance,
            operation=node.operation.id if node.operation else None,
            arguments=node.operation.arguments if node.operation else {},
            needs=tuple(self._nodes[need].id for need in sorted(node.needs)),
            when=node.operation.when if node.operation else True,
            retry=source.retry,
            timeout=source.timeout,
            final=node.final,
        )


def deferreds(value: Any) -> Iterator[Deferred]:
    """Every template in a value, however deep."""
    if isinstance(value, Deferred):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from deferreds(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from deferreds(item)


def _ancestors(edges: list[list[int]]) -> list[int]:
    """For each node the set of all nodes before it, as the bits of a number. The graph has no circle."""
    before: list[int | None] = [None] * len(edges)
    for start in range(len(edges)):
        stack = [start]
        while stack:
            number = stack[-1]
            open_needs = [need for need in edges[number] if before[need] is None]
            if before[number] is None and open_needs:
                stack.extend(open_needs)
                continue
            stack.pop()
            found = 0
            for need in edges[number]:
                found |= (before[need] or 0) | 1 << need
            before[number] = found
    return [found or 0 for found in before]


def _knots(edges: list[list[int]]) -> Iterator[list[int]]:
    """The strongly connected parts with a circle in them (Tarjan's algorithm, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in range(len(edges)):
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            number, place = work.pop()
            if place == 0:
                index[number] = low[number] = len(index)
                stack.append(number)
                on_stack.add(number)
            elif edges[number][place - 1] in on_stack:
                low[number] = min(low[number], low[edges[number][place - 1]])
            while place < len(edges[number]) and edges[number][place] in index:
                if edges[number][place] in on_stack:
                    low[number] = min(low[number], index[edges[number][place]])
                place += 1
            if place < len(edges[number]):
                work += [(number, place + 1), (edges[number][place], 0)]
                continue
            if low[number] == index[number]:
                cut = stack.index(number)
                knot, stack[cut:] = sorted(stack[cut:]), []
                on_stack.difference_update(knot)
                if len(knot) > 1 or number in edges[number]:
                    yield knot


def _shortest_circle(edges: list[list[int]], knot: list[int]) -> list[int]:
    """The shortest way from the knot's first node back to itself, without the last node."""
    start, inside = knot[0], set(knot)
    came: dict[int, int] = {}
    queue = deque([start])
    while queue:
        number = queue.popleft()
        for need in edges[number]:
            if need == start:
                path = [number]
                while path[-1] != start:
                    path.append(came[path[-1]])
                return path[::-1]
            if need in inside and need not in came:
                came[need] = number
                queue.append(need)
    return knot
