"""The package stays thin: imports go one way, and whatever is there is reached from a notebook or a command."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lowest first. A module may import from its own layer and from those below; what is not named is a single file.
LAYERS = [
    r"(|files|source|machine|speed|distributed|embed|optim|hub|profiles|checkpoints?|features)",
    r"data(\..*)?",
    r"models(\..*)?",
    r"evals(\..*)?",
    r"(figures|panels|plots|diagrams)",
    r"(lessons(\..*)?|models\.(vlm|projectors)|encoded|train|recipes|photo_stages|studies|report|export|rehearsal(\..*)?)",
    r"labs(\..*)?",
    r"(cli|__main__|(.*\.)?commands)",
]
# Reached from no notebook or command: what docs/evaluating.md offers, and what notebooks 05 and 05t will read.
ALLOWED = {
    "evals.vlmevalkit.VLMEvalModel",
}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted(path): path for path in sorted((ROOT / "vlm_lite").rglob("*.py"))}


def bound(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [each for target in targets if target for each in ast.walk(target)]
    return [each.id for each in names if isinstance(each, ast.Name)]


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def layer(name):
    inner = name.removeprefix("vlm_lite").removeprefix(".")
    fits = [k for k, pattern in enumerate(LAYERS) if re.fullmatch(pattern, inner)]
    assert fits, f"{name} has no layer: add it to LAYERS"
    return max(fits)


def imports(name):
    found = {"vlm_lite"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            wholes = {f"{node.module}.{alias.name}" for alias in node.names} & PATHS.keys()
            found |= wholes or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {each for each in found if each.startswith("vlm_lite.")} - {name}


@pytest.mark.parametrize("name", TREES)
def test_imports_go_one_way(name):
    higher = [other for other in imports(name) if layer(other) > layer(name)]
    assert not higher


def test_no_module_imports_itself_by_way_of_others():
    left = {name: imports(name) & TREES.keys() for name in TREES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, "these, or what they import, stand in a circle"


def words(node):
    """What stands in a statement: names, attributes, strings, and what an import gives another name."""
    found = {
        getattr(each, field, None) for each in ast.walk(node) for field in ("id", "attr", "value")
    }
    found |= {each.name for each in ast.walk(node) if isinstance(each, ast.alias) and each.asname}
    return {each for each in found if isinstance(each, str)}


def definitions():
    """{(module, name) or (module, class, method): its statements}, of what is neither a check nor generated."""
    found = {}
    for module, tree in TREES.items():
        if ".labs" in module or ".lessons" in module:
            continue
        for node in tree.body:
            parts = node.body if isinstance(node, ast.ClassDef) else []
            methods = [each for each in parts if isinstance(each, ast.FunctionDef)]
            for method in methods:
                found[module, node.name, method.name] = [method]
            for name in bound(node):
                own = [*node.decorator_list, *node.bases, *parts] if parts else [node]
                kept = [each for each in own if each not in methods]
                found[module, name] = found.get((module, name), []) + kept
    return found


def test_every_definition_is_reached_from_a_notebook_or_a_command():
    """By its name alone: one that is shared with something in use passes unseen."""
    outside = [*ROOT.glob("notebooks/*.py"), *ROOT.glob("tools/*.py")]
    used = [ast.parse(path.read_text(encoding="utf-8")) for path in outside]
    for name, tree in TREES.items():
        is_used = layer(name) >= len(LAYERS) - 2 or ".lessons." in name
        used += [tree] if is_used else [n for n in tree.body if isinstance(n, ast.Expr | ast.If)]
    names, left = set().union(*map(words, used)), definitions()
    called = ("__", "_ipython", "forward", "train")  # by Python, IPython and torch

    def is_reached(module, name, method=None):
        if method is None:
            return name in names or name.startswith("__")
        return (module, name) not in left and (method in names or method.startswith(called))

    while now := [key for key in left if is_reached(*key)]:
        for key in now:
            names = names.union(*map(words, left.pop(key)))
    left = {key for key in left if len(key) == 2 or key[:2] not in left}
    assert {".".join(key).removeprefix("vlm_lite.") for key in left} == ALLOWED
