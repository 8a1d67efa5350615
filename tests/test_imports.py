"""The package stays thin: imports go one way, and whatever is there is reached from a notebook or a command."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lowest first. A module may import from its own layer and from those below; what is not named is a single file.
LAYERS = [
    r"(|files|source|machine|speed|distributed|embed|optim|hub|profiles|checkpoint|features)",
    r"(data(\..*)?|lessons\.(conditions|cutouts|instructions|language|negatives|reading|world))",
    r"models(\..*)?",
    r"(evals(\..*)?|lessons\.(benchmarks|controls|mmbench|pope|retrieval|vqa))",
    r"(figures|plots|diagrams|family|places)",
    r"(lessons(\.(?!(benchmarks|conditions|controls|cutouts|instructions|language|mmbench|negatives|pope|reading|retrieval|vqa|world)$).*)?|models\.vlm|encoded|studies|real|rehearsal(\..*)?)",
    r"labs(\..*)?",
    r"(cli(\..*)?|__main__|(.*\.)?commands)",
]


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {dotted(path): path for path in sorted((ROOT / "vlm_lite").rglob("*.py"))}


class Module:
    """The names that a file defines, {name: its statements}, and those that it imports, {name: (module, name)}."""

    def __init__(self, path):
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined, self.imported = {}, {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "vlm_lite":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found = (whole, None) if whole in PATHS else (node.module, alias.name)
                    self.imported[alias.asname or alias.name] = found
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "vlm_lite":
                        self.imported[alias.asname or "vlm_lite"] = (alias.name, None)
        for node in self.tree.body:
            for name in bound(node):
                self.defined.setdefault(name, []).append(node)

    def uses(self, node, own=None):
        """What stands in `node`: {(module, name)} of the package, and the names of attributes."""
        pairs, attributes = set(), set()
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                pairs |= {self.imported[each.id]} if each.id in self.imported else set()
                pairs |= {(own, each.id)} if own and each.id in self.defined else set()
            elif isinstance(each, ast.Attribute):
                attributes.add(each.attr)
                module, name = self.imported.get(getattr(each.value, "id", None), (None, ""))
                if module and name is None:
                    whole = f"{module}.{each.attr}"
                    pairs.add((whole, None) if whole in PATHS else (module, each.attr))
            elif isinstance(each, ast.Constant) and isinstance(each.value, str):
                attributes.add(each.value)
        return pairs, attributes


def bound(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [each for target in targets if target for each in ast.walk(target)]
    return [each.id for each in names if isinstance(each, ast.Name)]


MODULES = {name: Module(path) for name, path in PATHS.items()}


def layer(name):
    inner = name.removeprefix("vlm_lite").removeprefix(".")
    fits = [k for k, pattern in enumerate(LAYERS) if re.fullmatch(pattern, inner)]
    assert fits, f"{name} has no layer: add it to LAYERS"
    return max(fits)


def imports(name):
    return {target for target, _ in MODULES[name].imported.values()} - {name, "vlm_lite"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    higher = [other for other in imports(name) if layer(other) > layer(name)]
    assert not higher


def test_no_module_imports_itself_by_way_of_others():
    left = {name: imports(name) & MODULES.keys() for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, "these, or what they import, stand in a circle"


def is_called(key, methods, names):
    """Whether a class's member is no method, is called by Python or torch, or by a name that stands somewhere."""
    name = key[2]
    plain = not isinstance(methods[key], ast.FunctionDef)
    return (
        plain
        or name in names
        or name.startswith(("__", "_ipython"))
        or name in ("forward", "train")
    )


def reached():
    """{(module, name)} of what notebooks, commands and tools use, and what that uses; methods count by their names."""
    found, names, waiting, methods = set(), set(), [], {}

    def add(pairs, attributes):
        names.update(attributes)
        for module, name in pairs:
            while module in MODULES and name not in MODULES[module].defined:
                if name not in MODULES[module].imported:
                    break
                module, name = MODULES[module].imported[name]
            if module in MODULES and (module, name) not in found:
                found.add((module, name))
                waiting.append((module, name))

    for path in [*ROOT.glob("notebooks/*.py"), *ROOT.glob("tools/*.py")]:
        outside = Module(path)
        add(*outside.uses(outside.tree))
    for name, module in MODULES.items():
        if layer(name) == len(LAYERS) - 1 or ".lessons." in name:
            add(*module.uses(module.tree, name))
    while waiting:
        owner, name = waiting.pop()
        module = MODULES[owner]
        for node in [n for n in module.tree.body if isinstance(n, ast.Expr | ast.If | ast.For)]:
            add(*module.uses(node, owner))
        for node in module.defined.get(name, []):
            if isinstance(node, ast.ClassDef):
                methods.update({(owner, name, each): m for m in node.body for each in bound(m)})
                for part in [*node.decorator_list, *node.bases]:
                    add(*module.uses(part, owner))
            else:
                add(*module.uses(node, owner))
        while not waiting and (
            called := [key for key in methods if is_called(key, methods, names)]
        ):
            for key in called:
                add(*MODULES[key[0]].uses(methods.pop(key), key[0]))
    return found, {".".join(key) for key in methods}


def is_core(name):
    """Neither a check of an exercise nor a lesson, which is generated."""
    return ".labs" not in name and ".lessons" not in name


def test_every_definition_is_reached_from_a_notebook_or_a_command():
    found, methods = reached()
    unreached = {
        f"{module}.{name}"
        for module, each in MODULES.items()
        for name in each.defined
        if (module, name) not in found and not name.startswith("__") and is_core(module)
    }
    unreached |= {name for name in methods if is_core(name)}
    assert not unreached
