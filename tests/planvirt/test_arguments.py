"""Arguments whose values are only known while the plan runs are held to the same types."""

from typing import Any

import pytest

from planvirt.arguments import checked_arguments
from planvirt.errors import PlanvirtError
from planvirt.secret import Secret


@pytest.mark.parametrize(
    ("action", "values", "expected"),
    [
        ("stop", {"grace": "1m30s", "force": True}, {"grace": 90.0, "force": True}),
        ("stop", {"grace": 60.0}, {"grace": 60.0}),
        ("sleep", {"for": "1m"}, {"for": 60.0}),
        ("wait", {"console": Secret("x"), "port": 22}, {"console": Secret("x"), "port": 22}),
        ("snapshot", {"upload": {"store": "local", "name": "a"}}, {"upload": {"store": "local", "name": "a"}}),
        ("launch", {"image": "local/x"}, {"image": "local/x"}),
    ],
)
def test_values(action: str, values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert checked_arguments(action, values) == expected


@pytest.mark.parametrize(
    ("action", "values", "message"),
    [
        ("stop", {"grace": "soon"}, "cannot stop: grace must be a duration such as '90s' or '1h30m', not 'soon'"),
        ("stop", {"grace": 5}, "cannot stop: grace must be a duration such as '90s', not 5"),
        ("stop", {"force": "yes"}, "cannot stop: force must be true or false, not 'yes'"),
        ("wait", {"port": "22"}, "cannot wait: port must be a port number from 1 to 65535, not '22'"),
        ("snapshot", {"upload": {"name": ""}}, "cannot snapshot: upload.name must be text"),
    ],
)
def test_refusals(action: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanvirtError, match=message):
        checked_arguments(action, values)
