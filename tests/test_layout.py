"""The layout of the package: data goes down the list of packages and never back up, and nothing lies around unused."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import distillhash

ROOT = Path(distillhash.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# A module imports only from the ones before it, and from its own package.
ORDER = [
    "errors",
    "files",
    "output",
    "pytorch",
    "distributed",
    "sources",
    "backbones",
    "texts",
    "codes",
    "hamming",
    "metrics",
    "supervision",
    "methods",
    "models",
    "index",
    "export",
    "search",
    "dedup",
    "bench",
    "serve",
    "cli",
    "__main__",
]
# A method can train a backbone that it is given, so it knows its types; it never makes one.
TYPES_ONLY = {("methods", "backbones")}
MAX_FILES = 166


def package(module: str) -> str:
    """``distillhash.index.base`` -> ``index``; empty for ``distillhash`` itself."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Modules of this package that a module imports at any depth, and whether that is for types only."""
    tree = ast.parse(MODULES[module].read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for part in block.body
        for node in ast.walk(part)
    }
    for node in ast.walk(tree):
        for name in imported(node):
            if name.endswith(".*"):
                members = (m for m in MODULES if m.rpartition(".")[0] == name[:-2] and not m.endswith("__main__"))
                yield from ((member, id(node) in guarded) for member in members if member != module)
            while name not in MODULES and "." in name:  # a class or function of a module
                name = name.rpartition(".")[0]
            if name in MODULES and name != module:
                yield name, id(node) in guarded


def imported(node: ast.AST) -> list[str]:
    """What an import statement, or ``import_module`` with a literal name, names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        argument = node.args[0]
        if isinstance(argument, ast.Constant):
            return [str(argument.value)]
        if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
            return [str(argument.values[0].value) + "*"]  # f"distillhash.methods.{name}": any of that package
    return []


def test_every_package_has_its_place() -> None:
    assert {package(module) for module in MODULES} <= {"", *ORDER}


@pytest.mark.parametrize("name", ORDER)
def test_imports_follow_the_order(name: str) -> None:
    allowed = {"", *ORDER[: ORDER.index(name) + 1]}
    against = [
        f"{module} imports {other}"
        for module in MODULES
        if package(module) == name
        for other, for_types in imports(module)
        if package(other) not in allowed or ((name, package(other)) in TYPES_ONLY and not for_types)
    ]
    assert not against


def test_no_module_imports_the_public_names() -> None:
    """``from distillhash import X`` imports X from its home when it runs, past the checks above."""
    lazy = [
        f"{module} imports {name}"
        for module in MODULES
        if module != "distillhash"
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        for name in imported(node)
        if name.removeprefix("distillhash.") in distillhash.__all__
    ]
    assert not lazy


def test_modules_import_in_no_circle() -> None:
    graph = {module: {other for other, for_types in imports(module) if not for_types} for module in MODULES}
    graph["distillhash"] = set()  # its names are imported when they are first used
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", ["codes", "hamming", "metrics", "index"])
def test_searching_and_measuring_need_no_torch(name: str) -> None:
    modules = [module for module in MODULES if package(module) == name]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_there_are_few_files() -> None:
    assert len(MODULES) <= MAX_FILES


def test_nothing_is_unused() -> None:
    command = [sys.executable, "-m", "vulture", "--min-confidence", "80", "src"]
    done = subprocess.run(command, cwd=ROOT.parents[1], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
