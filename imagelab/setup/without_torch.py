"""A script's settings without torch, so that `--help` and `--list` answer at once.

torch takes seconds to load, and what a script says of itself needs none of it. So the script is read as
it stands, with everything of this project that it imports, but each statement that cannot do without
torch is left out: a network's class, a function decorated by `torch.no_grad()`. What is left holds the
settings and `main`, which answers and ends the process. Where it does not come so far, the script goes
on as ever, torch and all.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

SLOW = {"torch", "torchvision", "numpy", "matplotlib", "skimage", "cv2", "PIL", "tqdm", "filelock"}
MISSED = ast.parse("(ImportError, NameError, AttributeError)", mode="eval").body
LEAVE_OUT = [ast.ExceptHandler(MISSED, None, [ast.Pass()])]


def answer(script: ModuleType, root: Path) -> None:
    """Run `script`, which is being run as __main__, without torch; `root` is the project's folder.

    Returns only where a statement was missed that its answer needs.
    """
    before = set(sys.modules)
    finder = _Finder(root)
    sys.meta_path.insert(0, finder)
    try:
        assert script.__file__ is not None  # it is a file of ours
        path = Path(script.__file__)
        exec(_parts_that_do(path.read_bytes(), str(path)), vars(script))
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if finder.is_ours(name):
                del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds no slow package, and of this project only what does without."""

    def __init__(self, root: Path) -> None:
        self.ours = {"imagelab", "studies", "benchmarks", *(p.stem for p in root.glob("*.py"))}

    def is_ours(self, name: str) -> bool:
        return name.partition(".")[0] in self.ours

    def find_spec(self, name, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in SLOW:
            raise ModuleNotFoundError(f"{name} is left out", name=name)
        if not self.is_ours(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(importlib.abc.FileLoader, importlib.abc.SourceLoader):
    """Loads a module without its statements that need what is left out; keeps no bytecode."""

    def source_to_code(self, data: bytes, path: str):
        return _parts_that_do(data, path)


def _parts_that_do(source: bytes, path: str):
    """The module's code, each statement of which may fail for want of a name and is then left out."""
    tree = ast.parse(source, path)
    tree.body = [_may_fail(part) for statement in tree.body for part in _one_by_one(statement)]
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _one_by_one(statement: ast.stmt) -> Iterator[ast.stmt]:
    """`from a import b, c` in two, for c may be there where b is not."""
    if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
        for name in statement.names:
            part = ast.ImportFrom(statement.module, [name], statement.level)
            yield ast.copy_location(part, statement)
    else:
        yield statement


def _may_fail(statement: ast.stmt) -> ast.stmt:
    future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    if future or isinstance(statement, ast.Expr):  # an expression: the docstring
        return statement
    guarded = ast.Try([statement], LEAVE_OUT, [], [])
    return ast.copy_location(guarded, statement)
