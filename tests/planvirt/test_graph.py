"""The graph, for plans of any shape: every edge is kept, the order is stable, and no circle escapes."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planvirt.errors import InvalidPlan
from planvirt.graph import Graph, build_graph
from planvirt.plan import Deferred, Instance, Operation, Plan
from planvirt.states import State

NAMES = ("a", "b", "c", "d", "e")
IDS = ("u", "v", "w", "x", "y", "z")


def an_instance(name: str, *needs: str, state: State = State.RUNNING, image: str | Deferred | None = None) -> Instance:
    return Instance(name, name, "local", 1, 2**30, needs=needs, state=state, image=image)


def an_operation(id: str, *instances: str, action: str = "stop", needs: tuple[str, ...] | None = None) -> Operation:
    return Operation(id, action, instances, needs=needs)


def a_plan(
    instances: list[Instance], operations: list[Operation] | None = None, finally_: list[Operation] | None = None
) -> Plan:
    return Plan(
        "test",
        Path("test.yaml"),
        "",
        instances=tuple(instances),
        operations=tuple(operations or ()),
        finally_=tuple(finally_ or ()),
    )


@st.composite
def plans(draw: st.DrawFn, *, forward: bool) -> Plan:
    """Any plan; a `forward` one only needs what stands before it, so that it has no circle."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    ids = IDS[: draw(st.integers(0, len(IDS)))]
    instances = []
    for place, name in enumerate(names):
        pool = names[:place] if forward else (*names, *ids)
        wanted = draw(st.lists(st.sampled_from(pool), unique=True, max_size=3)) if pool else []
        instances.append(an_instance(name, *wanted))
    operations = []
    for place, own in enumerate(ids):
        pool = (*names, *(ids[:place] if forward else ids))
        some = st.lists(st.sampled_from(pool), unique=True, max_size=3)
        needs = tuple(draw(some)) if draw(st.booleans()) else None
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
        action = draw(st.sampled_from(("stop", "start", "launch") if not forward else ("stop", "start")))
        operations.append(an_operation(own, *chosen, action=action, needs=needs))
    last = [an_operation("last", *draw(st.lists(st.sampled_from(names), unique=True)))] if draw(st.booleans()) else []
    return a_plan(instances, operations, last)


def ancestors(graph: Graph) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for step in graph.steps:
        found[step.id] = set(step.needs).union(*(found[need] for need in step.needs))
    return found


def check_order(plan: Plan, graph: Graph) -> None:
    before = ancestors(graph)  # fails when a step comes before one that it needs
    of_instance: dict[str, list[str]] = {}
    for step in graph.steps:
        if step.operation is not None:
            of_instance.setdefault(step.instance.name, []).append(step.id)
    for ids in of_instance.values():
        for earlier, later in pairwise(ids):
            assert earlier in before[later]
    for step in graph.steps:
        if step.final:
            assert {other.id for other in graph.steps if not other.final} <= before[step.id]
    assert len(graph.steps) == len({step.id for step in graph.steps})
    assert build_graph(plan) == graph


@given(plans(forward=True))
def test_a_plan_without_a_circle_has_an_order(plan: Plan) -> None:
    check_order(plan, build_graph(plan))


def entity_edges(plan: Plan) -> dict[str, set[str]]:
    """Who waits for whom, by a naive reading of the rules, between steps."""
    bringing = {}
    launched = {name: op.id for op in reversed(plan.operations) if op.action == "launch" for name in op.instances}
    for instance in plan.instances:
        own = launched.get(instance.name)
        bringing[instance.name] = f"{own}.{instance.name}" if own else f"launch.{instance.name}"
    steps_of = {op.id: [f"{op.id}.{name}" for name in op.instances] for op in plan.operations}

    def targets(name: str) -> list[str]:
        return steps_of[name] if name in steps_of else [bringing[name]]

    edges: dict[str, set[str]] = {step: set() for steps in steps_of.values() for step in steps}
    for instance in plan.instances:
        edges.setdefault(bringing[instance.name], set()).update(t for need in instance.needs for t in targets(need))
    declared = {bringing[one.name] for one in plan.instances if one.name not in launched}
    behind: set[str] = set()
    for _ in plan.instances:
        behind |= {step for step in declared if edges[step] & (edges.keys() - declared) or edges[step] & behind}
    previous = sorted(declared - behind)
    for operation in plan.operations:
        for name in operation.instances:
            own = f"{operation.id}.{name}"
            needed = previous if operation.needs is None else [t for need in operation.needs for t in targets(need)]
            edges[own] |= set(needed) | ({bringing[name]} & declared)
        previous = steps_of[operation.id] or previous
    return edges


def has_circle(edges: dict[str, set[str]]) -> bool:
    left = {step: set(needs) for step, needs in edges.items()}
    while True:
        free = {step for step, needs in left.items() if not needs}
        if not free:
            return bool(left)
        left = {step: needs - free for step, needs in left.items() if step not in free}


@given(plans(forward=False))
def test_every_circle_is_found_and_nothing_else(plan: Plan) -> None:
    edges = entity_edges(plan)
    try:
        graph = build_graph(plan)
    except InvalidPlan as error:
        assert has_circle(edges)
        assert all(problem.message.startswith("circle: ") for problem in error.problems)
    else:
        assert not has_circle(edges)
        check_order(plan, graph)
        for step in graph.steps:
            assert edges.get(step.id, set()) <= set(step.needs)


def test_a_circle_is_named_whole_and_each_knot_once() -> None:
    plan = a_plan([an_instance("a", "b"), an_instance("b", "c"), an_instance("c", "a"), an_instance("d", "d")])
    with pytest.raises(InvalidPlan) as caught:
        build_graph(plan)
    assert [problem.message for problem in caught.value.problems] == [
        "circle: a needs b needs c needs a",
        "circle: d needs d",
    ]


def test_an_absent_instance_is_terminated() -> None:
    graph = build_graph(a_plan([an_instance("a", state=State.ABSENT)]))
    assert [(step.id, step.action) for step in graph.steps] == [("terminate.a", "terminate")]


def test_an_image_from_a_step_waits_for_it() -> None:
    image = Deferred("{{ steps.u.outputs.image }}", ("steps.u",), 1, 1)
    graph = build_graph(a_plan([an_instance("a"), an_instance("b", image=image)], [an_operation("u", "a")]))
    assert [(step.id, step.needs) for step in graph.steps] == [
        ("launch.a", ()),
        ("u.a", ("launch.a",)),
        ("launch.b", ("u.a",)),
    ]


def test_two_thousand_steps_are_ordered_quickly() -> None:
    names = [f"i{number}" for number in range(200)]
    operations = [an_operation(f"o{number}", *names) for number in range(9)]
    assert len(build_graph(a_plan([an_instance(name) for name in names], operations)).steps) == 2000


def test_a_long_chain_is_no_recursion() -> None:
    names = [f"i{number}" for number in range(2000)]
    instances = [an_instance(name, *names[place + 1 : place + 2]) for place, name in enumerate(names)]
    assert build_graph(a_plan(instances)).steps[0].id == "launch.i1999"
