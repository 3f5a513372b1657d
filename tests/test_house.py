"""What holds for the whole house: its rooms' arrows, and one name for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from conftest import LONGEST_FIRST

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("report", "techniques", "training", "data", "setup")  # each may import from those after it
# Every script has a class of settings of this name, which nobody imports beside another.
OF_EVERY_SCRIPT = {"Config"}


def modules(*folders: str) -> dict[Path, ast.Module]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in paths}


def imported(tree: ast.Module) -> set[str]:
    """The modules that a file imports, also inside its functions, but not for types alone."""
    names = set()
    body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING")]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_rooms_import_downwards_only():
    upwards = []
    for path, tree in modules(*(f"imagelab/{room}" for room in ROOMS)).items():
        above = ROOMS[: ROOMS.index(path.parent.name)]
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] == "imagelab" and len(parts) > 1 and parts[1] in above:
                upwards.append(f"{path} imports {name}")
            if parts[0] == "studies" or f"{parts[0]}.py" in {p.name for p in ROOT.glob("*.py")}:
                upwards.append(f"{path} imports the script {name}")
    assert upwards == []


def test_no_two_modules_import_each_other():
    """No circle within a room either."""
    graph = {
        ".".join(path.with_suffix("").parts): imported(tree)
        for path, tree in modules(*(f"imagelab/{room}" for room in ROOMS)).items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph[name] & graph.keys():
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(graph)


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    rooms = (f"imagelab/{room}" for room in ROOMS)
    for path, tree in modules(".", "studies", "benchmarks", *rooms).items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name not in OF_EVERY_SCRIPT:
                places[node.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_the_longest_tests_are_files_that_exist():
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert set(LONGEST_FIRST) <= names and len(set(LONGEST_FIRST)) == len(LONGEST_FIRST)
