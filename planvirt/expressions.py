"""Jinja expressions in the scalars of a plan, in a sandbox that reads plain data and nothing else.

No attribute is ever looked up on a Python object, nothing can be called but `range`, and the work is bounded. Jinja is
imported when the first expression is met.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

from planvirt.errors import PlanvirtError
from planvirt.plan import Deferred
from planvirt.secret import Secret

if TYPE_CHECKING:
    import jinja2
    from jinja2 import Environment, nodes

MAX_TEXT = 16_384  # characters of a template
MAX_OUTPUT = 65_536  # characters of a result
MAX_RANGE = 1_000

STATIC_ROOTS = ("inputs", "env", "each", "index")
RUNTIME_ROOTS = ("instance", "plan", "run", "steps", "instances", "secrets")
ROOTS = STATIC_ROOTS + RUNTIME_ROOTS

_FILTERS = (
    "abs", "capitalize", "d", "default", "first", "float", "int", "join", "last", "length", "lower", "max", "min",
    "replace", "round", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_TESTS = (
    "defined", "undefined", "none", "boolean", "true", "false", "number", "integer", "float", "string",
    "mapping", "sequence", "even", "odd", "divisibleby", "in", "==", "!=", "<", "<=", ">", ">=", "eq", "ne", "lt",
    "le", "gt", "ge",
)  # fmt: skip
_LOOP = ("first", "index", "index0", "last", "length")


class ExpressionError(PlanvirtError):
    """An expression cannot be read or rendered."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that an expression reads, as far as its steps are written out: ("steps", "image", "outputs")."""

    path: tuple[str, ...]

    @property
    def root(self) -> str:
        """The first name."""
        return self.path[0]


@dataclass(frozen=True, slots=True)
class Template:
    """A checked scalar. `whole` when it is exactly one `{{ expression }}`, whose own type the result keeps."""

    text: str
    whole: bool
    references: tuple[Reference, ...]


def is_template(value: object) -> bool:
    """Whether a scalar of a plan is to be rendered."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


@lru_cache(maxsize=4096)
def read_template(text: str) -> Template:
    """Read a scalar and the names it refers to; raises ExpressionError when it is malformed or not allowed."""
    import jinja2

    brief = "cannot read the expression"
    if len(text) > MAX_TEXT:
        raise ExpressionError(brief, details=f"it is longer than {MAX_TEXT} characters")
    try:
        tree = _environment().parse(text)
        whole = _whole(_environment().parse(text.strip()))
        references = _Reader(tree).references()
        _compiled(text, whole)
    except jinja2.TemplateError as error:
        raise ExpressionError(brief, details=_jinja_words(error)) from error
    except (RecursionError, MemoryError) as error:
        raise ExpressionError(brief, details="it is nested too deeply") from error
    except (SyntaxError, ValueError, OverflowError) as error:
        raise ExpressionError(brief, details="a value in it is out of range") from error
    return Template(text, whole, references)


def render(template: Template, scope: Mapping[str, Any]) -> Any:
    """The value of a scalar: a native one for a whole expression, else text. Raises ExpressionError."""
    import jinja2

    brief = f"cannot render '{template.text.strip()[:60]}'"
    try:
        value = _compiled(template.text, template.whole)(dict(scope))
    except jinja2.UndefinedError as error:
        raise ExpressionError(brief, details=_jinja_words(error)) from error
    except jinja2.TemplateError as error:
        raise ExpressionError(brief, details=_jinja_words(error)) from error
    except ZeroDivisionError as error:
        raise ExpressionError(brief, details="it divides by zero") from error
    except (TypeError, ValueError, OverflowError, ArithmeticError, LookupError, AttributeError) as error:
        # The text of a Python error may quote values, secrets among them; its kind says enough.
        details = "it combines values of kinds that do not go together, or one is out of range"
        raise ExpressionError(brief, details=details) from error
    except (RecursionError, MemoryError) as error:
        raise ExpressionError(brief, details="it is too large") from error
    if isinstance(value, str) and len(value) > MAX_OUTPUT:
        raise ExpressionError(brief, details=f"the result is longer than {MAX_OUTPUT} characters")
    return value


def render_deferred(deferred: Deferred, scope: Mapping[str, Any]) -> Any:
    """The value of a template at run time, from a scope of plain data (see planvirt.scope).

    `scope["secrets"]` maps names to Secret. A result that any secret went into is a Secret itself.
    """
    template = read_template(deferred.text)
    names = {**scope, **deferred.known}
    names.pop("secrets", None)
    if not any(reference.root == "secrets" for reference in template.references):
        return render(template, names)
    used = {reference.path[1] for reference in template.references if reference.root == "secrets"}
    names["secrets"] = {name: scope["secrets"][name].reveal() for name in sorted(used)}
    try:
        return Secret(str(render(template, names)))
    except ExpressionError as error:
        # Neither the message nor the chain of causes may carry what the secret says.
        raise ExpressionError(error.brief, details="it does not fit the secrets that it uses") from None


def _whole(tree: "nodes.Template") -> bool:
    from jinja2 import nodes

    if len(tree.body) != 1 or not isinstance(tree.body[0], nodes.Output):
        return False
    parts = tree.body[0].nodes
    return len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData)


@lru_cache(maxsize=4096)
def _compiled(text: str, whole: bool) -> Any:
    environment = _environment()
    if not whole:
        return partial(_text_of, environment.from_string(text))
    inner = text.strip()[2:-2]
    inner = inner[1:] if inner[:1] in ("-", "+") else inner
    inner = inner[:-1] if inner[-1:] in ("-", "+") else inner
    expression = environment.compile_expression(inner, undefined_to_none=False)

    def evaluate(scope: dict[str, Any]) -> Any:
        from jinja2 import Undefined

        value = expression(scope)
        if isinstance(value, Undefined):
            str(value)  # raises, with the name in the message
        return value

    return evaluate


def _text_of(template: "jinja2.Template", scope: dict[str, Any]) -> str:
    """The rendered text, given up as soon as it is too long."""
    parts, length = [], 0
    for part in template.generate(scope):
        parts.append(part)
        length += len(part)
        if length > MAX_OUTPUT:
            break  # render() refuses the length
    return "".join(parts)


@cache
def _environment() -> "Environment":
    from jinja2 import StrictUndefined, Undefined
    from jinja2.exceptions import SecurityError
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class PlainData(ImmutableSandboxedEnvironment):
        """Looks up keys of mappings and items of lists, and nothing else."""

        intercepted_binops = frozenset({"*", "%", "**"})

        def getattr(self, obj: Any, attribute: str) -> Any:
            return self.getitem(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(obj, Undefined):
                return obj[argument]  # raises, with the first unknown name in the message
            if isinstance(argument, str) and argument.startswith("_"):
                raise SecurityError(f"names that begin with '_' are not allowed ('{argument}')")
            if isinstance(obj, LoopContext) and argument in _LOOP:
                return getattr(obj, argument)
            found = _item(obj, argument)
            return self.undefined(hint=f"there is no '{argument}' here") if found is _NOTHING else found

        def is_safe_callable(self, obj: Any) -> bool:
            return obj is _range

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or not all(isinstance(side, int | float) for side in (left, right)):
                raise SecurityError(f"'{operator}' is only for numbers" if operator != "**" else "'**' is not allowed")
            return super().call_binop(context, operator, left, right)

    environment = PlainData(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.globals = {"range": _range}
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    environment.filters["replace"] = _replace
    environment.filters["join"] = _join
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    return environment


_NOTHING = object()

# What the user wrote, for the kinds of nodes that Jinja calls otherwise.
_SPELT = {
    "pow": "**",
    "assign": "set",
    "assignblock": "set",
    "fromimport": "from",
    "dict": "{...}",
    "filterblock": "filter",
}


def _item(obj: Any, argument: Any) -> Any:
    """What a mapping or a list holds there; _NOTHING when it holds nothing, or is neither."""
    if isinstance(obj, Mapping) and isinstance(argument, str | int):
        return obj.get(argument, _NOTHING)
    if isinstance(obj, list | tuple | str) and isinstance(argument, slice):
        return obj[argument]
    if isinstance(obj, list | tuple | str) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
        return obj[argument]
    return _NOTHING


def _security_error(message: str) -> Exception:
    from jinja2.exceptions import SecurityError

    return SecurityError(message)


def _range(*arguments: int) -> range:
    """A range of at most a thousand numbers."""
    numbers = range(*arguments)
    if len(numbers) > MAX_RANGE:
        raise _security_error(f"range() gives at most {MAX_RANGE} numbers")
    return numbers


def _replace(text: object, old: str, new: str) -> str:
    """The text with another in place of each `old`; chained calls must not grow it without bound."""
    result = str(text).replace(old, new) if old else str(text)
    if len(result) > MAX_OUTPUT:
        raise _security_error(f"the text grows longer than {MAX_OUTPUT} characters")
    return result


def _join(items: Iterable[object], between: str = "") -> str:
    """The items as one text."""
    result = str(between).join(str(item) for item in items)
    if len(result) > MAX_OUTPUT:
        raise _security_error(f"the text grows longer than {MAX_OUTPUT} characters")
    return result


class _Reader:
    """Collects the names that a template reads and refuses what no expression of a plan needs."""

    def __init__(self, tree: "nodes.Template") -> None:
        from jinja2 import nodes

        self._nodes = nodes
        self._allowed: tuple[type, ...] = (
            nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
            nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul,
            nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos, nodes.Concat, nodes.CondExpr, nodes.Filter,
            nodes.Test, nodes.List, nodes.Tuple, nodes.If, nodes.For, nodes.Call, nodes.Keyword,
        )  # fmt: skip
        self._found: dict[Reference, None] = {}
        self._local: set[str] = {"loop"}
        for loop in tree.find_all(nodes.For):
            self._local |= {name.name for name in loop.target.find_all(nodes.Name)}
            if isinstance(loop.target, nodes.Name):
                self._local.add(loop.target.name)
        self._visit(tree, loops=0)

    def references(self) -> tuple[Reference, ...]:
        """Every name once, in the order of the template."""
        return tuple(self._found)

    def _visit(self, node: "nodes.Node", loops: int) -> None:
        nodes = self._nodes
        if not isinstance(node, self._allowed):
            kind = type(node).__name__.lower()
            self._refuse(f"'{_SPELT.get(kind, kind)}' is not allowed in an expression")
        if isinstance(node, nodes.For):
            self._check_loop(node, loops)
            loops += 1
        if isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Name) and node.node.name == "range"):
            self._refuse("nothing can be called here but range(); use a filter, such as 'name | lower'")
        if isinstance(node, nodes.Name | nodes.Getattr | nodes.Getitem):
            self._chain(node, loops)
        else:
            for child in node.iter_child_nodes():
                self._visit(child, loops)

    def _check_loop(self, node: "nodes.For", loops: int) -> None:
        if loops:
            self._refuse("a loop inside a loop is not allowed")
        if node.recursive:
            self._refuse("a recursive loop is not allowed")
        taken = self._local & {*ROOTS, "range"}
        if taken:
            self._refuse(f"'{min(taken)}' cannot be the name of a loop's variable")

    def _chain(self, node: "nodes.Node", loops: int) -> None:
        """A name with the keys after it, as far as they are written out."""
        nodes = self._nodes
        keys: list[str | None] = []
        while isinstance(node, nodes.Getattr | nodes.Getitem):
            keys.append(self._key(node, loops))
            node = node.node
        if not isinstance(node, nodes.Name):
            self._visit(node, loops)
            return
        if node.ctx != "load" or node.name in self._local or node.name == "range":
            return
        path = [node.name]
        for key in reversed(keys):
            if key is None:
                break
            path.append(key)
        self._found[Reference(tuple(path))] = None

    def _key(self, node: Any, loops: int) -> str | None:
        if isinstance(node, self._nodes.Getattr):
            key: object = node.attr
        elif isinstance(node.arg, self._nodes.Const):
            key = node.arg.value
        else:
            self._visit(node.arg, loops)
            return None
        if isinstance(key, str) and key.startswith("_"):
            self._refuse(f"names that begin with '_' are not allowed ('{key}')")
        return key if isinstance(key, str) else None

    @staticmethod
    def _refuse(message: str) -> None:
        raise _security_error(message)


_JINJA_WORDS = (
    (re.compile(r"'(?:\w+ object|.*)' has no attribute '(\w+)'"), r"there is no '\1' here"),
    (re.compile(r"'(\w+)' is undefined"), r"there is no '\1' here"),
    (re.compile(r"No filter named '(\w+)'\.?"), rf"there is no filter '\1'; there are {', '.join(_FILTERS)}"),
    (re.compile(r"No test named '(\w+)'\.?"), r"there is no test '\1'"),
    (re.compile(r"Encountered unknown tag '(\w+)'.*", re.DOTALL), r"the statement '\1' is not known"),
    (re.compile(r"unexpected end of template.*", re.DOTALL | re.IGNORECASE), r"it is not closed"),
    (re.compile(r"expected token 'end of print statement', got '(.+)'"), r"'\1' is not expected there"),
)


def _jinja_words(error: Exception) -> str:
    message = str(getattr(error, "message", None) or error)
    for pattern, words in _JINJA_WORDS:
        if pattern.fullmatch(message):
            return pattern.sub(words, message)
    return message[:1].lower() + message[1:].rstrip(".")
