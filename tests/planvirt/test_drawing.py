"""The three drawings of one graph."""

from pathlib import Path

from planvirt.drawing import draw_dot, draw_mermaid, draw_text
from planvirt.graph import Graph, build_graph
from planvirt.plan import Deferred, Instance, Operation, Plan


def a_graph() -> Graph:
    instances = (Instance("a", "a", "local", 1, 2**30), Instance("b", "b", "local", 1, 2**30, needs=("a",)))
    when = Deferred("{{ steps.s.outputs.x }}", ("steps.s",), 1, 1)
    operations = (Operation("s", "stop", ("a", "b"), parallel=1), Operation("start", "start", ("a",), when=when))
    final = (Operation("last", "wait", ("b",)),)
    return build_graph(Plan("p", Path("p.yaml"), "", instances=instances, operations=operations, finally_=final))


def test_text() -> None:
    assert draw_text(a_graph()).splitlines() == [
        "1.",
        "   launch.a",
        "2.",
        "   launch.b  after launch.a",
        "3.",
        "   s.a       after launch.b (1 at a time)",
        "   s.b       after launch.b (1 at a time)",
        "4.",
        "   start.a   after s.a, s.b (if {{ steps.s.outputs.x }})",
        "5.",
        "   last.b    after start.a (in any case)",
    ]


def test_mermaid() -> None:
    lines = draw_mermaid(a_graph()).splitlines()
    assert lines[:3] == ["flowchart LR", '  s0["launch<br/>a"]', '  s1["launch<br/>b"]']
    assert "  s1 --> s3" in lines
    assert "  s0 --> s3" not in lines  # s1 waits for s0 already
    assert lines[-1] == "  class s5 final"


def test_dot() -> None:
    lines = draw_dot(a_graph()).splitlines()
    assert lines[0] == "digraph plan {"
    assert '  "s.a" [label="s: stop\\na"];' in lines
    assert '  "start.a" -> "last.b";' in lines
    assert lines[-1] == "}"


def test_nothing() -> None:
    assert draw_text(Graph((), {})) == "nothing to do"
