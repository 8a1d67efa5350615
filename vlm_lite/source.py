"""The source of a function as a syntax tree, with all that it calls: what a record and a checkpoint depend on.

Layout, comments, docstrings and checks of the input do not count: they change no figure.
"""

import ast
import functools
import hashlib
import inspect
import textwrap
import types

PLAIN = int | float | str | bool | tuple | list | dict | None


def what_counts(source):
    """The syntax tree of a source, written out without what changes no figure.

    Layout, comments and docstrings are not in it, nor what can only stop a run: `raise`, `assert`, a call of a function
    named `check_...`, a warning, an `if` or `for` around these alone, and an `if` that ends in `raise`, whatever it does
    before. The same on every version of Python.
    """

    def idle(node):
        if isinstance(node, ast.If | ast.For):
            stops = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)
            return (stops or all(map(idle, node.body))) and all(map(idle, node.orelse))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func)
            return name == "warnings.warn" or name.split(".")[-1].lstrip("_").startswith("check_")
        return (
            isinstance(node, ast.Raise | ast.Assert)
            or isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
        )

    def written(node):
        if isinstance(node, ast.AST):
            fields = [
                f"{name}={written(value)}"
                for name, value in ast.iter_fields(node)
                if value not in (None, []) and name not in ("ctx", "kind")
            ]
            return f"{type(node).__name__}({', '.join(fields)})"
        if isinstance(node, list):
            kept = (item for item in node if not (isinstance(item, ast.stmt) and idle(item)))
            return f"[{', '.join(map(written, kept))}]"
        return repr(node)

    return written(ast.parse(textwrap.dedent(source)))


def code_hash(*roots, follow=()):
    """16 hexadecimal digits that change when the code of `roots`, or of what they call, changes.

    roots: functions, classes, or values whose repr counts. What a function reads from its module's global names is
    followed where it was defined in that module, or in a module whose name begins with one of `follow`.
    """
    seen, parts, waiting = set(), [], list(roots)
    while waiting:
        item = waiting.pop(0)
        while isinstance(item, functools.partial):
            parts.append(repr((item.args, sorted(item.keywords.items()))))
            item = item.func
        if inspect.isclass(item):
            own = [inspect.unwrap(each) for each in map(_function, vars(item).values()) if each]
            found = [  # not what `dataclass` adds, which differs from one Python to the next
                m
                for m in own
                if m.__module__ == item.__module__ and m.__code__.co_filename != "<string>"
            ]
            found += [base for base in item.__bases__ if _near(base, item, follow)]
            values = {k: v for k, v in vars(item).items() if isinstance(v, PLAIN) and k[0] != "_"}
            parts.append(f"class {item.__name__} {[b.__name__ for b in item.__bases__]} {values}")
        elif inspect.isfunction(item := inspect.unwrap(item) if callable(item) else item):
            parts.append(_text(item))
            found = [v for v in _globals_of(item) if _near(v, item, follow)]
        else:
            parts.append(repr(item))
            if " at 0x" in parts[-1]:
                raise ValueError(f"{parts[-1][:200]} has an address in it: another hash each time.")
            found = []
        waiting += [other for other in found if id(other) not in seen]
        seen |= set(map(id, found))
    return hashlib.sha256("\n".join(sorted(set(parts))).encode()).hexdigest()[:16]


def _text(function):
    """What counts of a function's source; its bytecode where no source is kept, as in `python -c`."""
    try:
        return what_counts(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError):
        return f"{function.__name__} {function.__code__.co_code.hex()}"


def _function(value):
    """The function in an attribute of a class, also of a property or a class method; None for anything else."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    return value if inspect.isfunction(value) else None


def _globals_of(function):
    """The functions, classes and plain values that a function reads by global names, also as `module.name`, or by default."""
    names, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [value for value in code.co_consts if inspect.iscode(value)]
    values = [function.__globals__[name] for name in sorted(names & function.__globals__.keys())]
    for module in [v for v in values if isinstance(v, types.ModuleType)]:
        if module.__name__.split(".")[0] == "vlm_lite":
            values += [vars(module)[name] for name in sorted(names & vars(module).keys())]
    values += (function.__kwdefaults__ or {}).values()
    flat = []
    while values:
        value = values.pop(0)
        inside = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list | tuple) and any(map(callable, inside)):
            values = [*inside, *values]
        else:
            flat.append(value)
    return flat


def _near(value, of, follow):
    """Whether what `of` reads belongs to its code: defined beside it or in a followed module, or a plain constant."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__module__ == of.__module__ or value.__module__.startswith(tuple(follow))
    return isinstance(value, PLAIN)
