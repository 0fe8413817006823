"""What of another project is leaned on, looked up in its source without importing it.

Exchanging a module's name does nothing, silently, once that project calls it otherwise. So whoever does it lists
each name that is subclassed, exchanged or called, with the parameters that it had at the supported commit.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

#: File of a package and name in it -> its parameters; None where the name only has to be there.
Needed = Mapping[tuple[str, str], str | None]


def misfits(package: Path, needed: Needed) -> list[str]:
    """Return what is missing in the package's folder or has other parameters, a line each."""
    names = {file: _names(package / file) for file, _ in needed}
    wrong = []
    for (file, name), parameters in needed.items():
        there = names[file]
        if name not in there:
            wrong.append(f"{file}: {name} is missing")
        elif parameters is not None and there[name] != parameters:
            wrong.append(f"{file}: {name} takes ({there[name]}), not ({parameters})")
    return wrong


def _names(path: Path) -> dict[str, str]:
    """Return what a module and its classes define or import, with the parameters of functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found.update({alias.asname or alias.name: "" for alias in node.names})
    return found | _defined(tree.body)


def _defined(body: Iterable[ast.stmt], of: str = "") -> dict[str, str]:
    """Return what statements of a module define, or, with a prefix, those of a class."""
    found: dict[str, str] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found[of + statement.name] = _parameters(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found.update({of + target.id: "" for target in targets if isinstance(target, ast.Name)})
        elif isinstance(statement, ast.ClassDef):
            found[of + statement.name] = ""
            found |= _defined(statement.body, f"{of}{statement.name}.")
    return found


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = function.args
    return " ".join(each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
