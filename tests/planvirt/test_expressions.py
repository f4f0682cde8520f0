"""Expressions: what they give, that secrets stay secret, and that no text breaks the sandbox."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planvirt.expressions import ExpressionError, read_template, render, render_deferred
from planvirt.plan import Deferred
from planvirt.secret import Secret

SCOPE = {"inputs": {"n": 3, "text": "abc", "list": [1, 2]}, "each": {"key": "a", "value": {"x": 1}}, "index": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ inputs.n }}", 3),
        (" {{ inputs.n + 1 }} ", 4),
        ("{{ inputs.n }} GiB", "3 GiB"),
        ("{{- inputs.n -}}", 3),
        ("{{ inputs.n > 2 and index == 2 }}", True),
        ("{{ inputs['text'] | upper }}", "ABC"),
        ("{{ inputs.text[0] }}{{ inputs.list[-1] }}", "a2"),
        ("{{ each.value.x if each.value.x is defined else 7 }}", 1),
        ("{{ each.value.y | default(7) }}", 7),
        ("{% for n in range(3) %}{{ loop.index }}{% if not loop.last %},{% endif %}{% endfor %}", "1,2,3"),
        ("{{ '{{' }}", "{{"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert render(read_template(text), SCOPE) == value


def test_references() -> None:
    template = read_template("{{ steps['a-b'].outputs.image ~ inputs.n ~ inputs[inputs.text] ~ run.date }}")
    assert [reference.path for reference in template.references] == [
        ("steps", "a-b", "outputs", "image"),
        ("inputs", "n"),
        ("inputs", "text"),
        ("inputs",),
        ("run", "date"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{{ inputs.__class__ }}",
        "{{ inputs['__class__'] }}",
        "{{ inputs.keys() }}",
        "{{ (inputs | string).format }}",
        "{{ ''.join }}",
        "{{ range.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ inputs | map(attribute='__class__') }}",
        "{{ [inputs] | join(attribute='x') }}",
        "{{ [[1]] | sort(attribute='__len__') }}",
        "{{ [inputs] | max(attribute='_x') }}",
        "{% for a in inputs recursive %}{% endfor %}",
        "{% for inputs in [1] %}{% endfor %}",
        "{% macro a() %}{% endmacro %}",
        "{% block a %}{% endblock %}",
        "{% extends 'x' %}",
        "{% set a = 1 %}",
        "{{ 2 ** 99 }}",
        "{{ [1] * 9 }}",
        "{{ 'x' | replace('x', 'y' * 9) }}",
        "{{ 'xx' | replace('x', 'y') | center(999999999) }}",
        "{{ " + "(" * 9000 + ")" * 9000 + " }}",
        "{{ " + "9" * 9000 + " }}",
        "{{ 1 " + "+ 1 " * 8000 + " }}",
        "{{ 'a' " + "| replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')" * 9 + " }}",
        "x" * 20_000 + "{{ 1 }}",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        render(read_template(text), SCOPE)


def deferred(text: str, **known: Any) -> Deferred:
    return Deferred(text, (), 1, 1, known)


def test_a_deferred_value_knows_what_the_plan_knew() -> None:
    assert render_deferred(deferred("{{ index }}-{{ run.date }}", index=4), {"run": {"date": "today"}}) == "4-today"


def test_a_result_with_a_secret_is_a_secret() -> None:
    scope = {"secrets": {"key": Secret("hush"), "other": Secret("not read")}}
    result = render_deferred(deferred("key={{ secrets.key }}"), scope)
    assert isinstance(result, Secret)
    assert str(result) == "***"
    assert result.reveal() == "key=hush"


def test_secrets_are_not_seen_by_other_expressions() -> None:
    with pytest.raises(ExpressionError):
        render_deferred(deferred("{{ inputs[name] }}"), {"secrets": {"key": Secret("hush")}, "name": "secrets"})


@pytest.mark.parametrize(
    "text",
    [
        "{{ secrets.key + 1 }}",
        "{{ inputs[secrets.key] }}",
        "{{ secrets.key.upper }}",
        "{{ secrets.key | abs }}",
        "{{ range(secrets.key | length) | join(secrets.key * 2) }}",
    ],
)
def test_an_error_does_not_tell_the_secret(text: str) -> None:
    scope = {"secrets": {"key": Secret("hush")}, "inputs": {}}
    with pytest.raises(ExpressionError) as caught:
        render_deferred(deferred(text), scope)
    error: BaseException | None = caught.value
    assert "hush" not in f"{caught.value!r} {caught.value.as_dict()}"
    assert error is not None
    assert error.__cause__ is None
    assert error.__suppress_context__


@given(st.text(alphabet=st.sampled_from("{}%#'\"|.()[]_ ainputsrg09+-*/~<>=\n"), max_size=40))
def test_any_text_gives_a_value_or_an_error(text: str) -> None:
    try:
        render(read_template("{{ " + text), SCOPE)
    except ExpressionError as error:
        assert error.brief
