"""The map in docs/architecture.md holds: who imports whom, without circles; and private members stay private."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("vlac_queue", "workers", "dashboards", "verl_adapter", "benchmarks")

#: Imports that the map doesn't allow, and why they stand all the same.
UNLIKE_THE_MAP = {
    (
        "workers/critics/vlac/installation.py",
        "vlac_queue/control.py",
    ): "its errors quote how to start without weights",
}
#: Private members of other projects that offer no public way, and why they are needed.
OF_OTHER_PROJECTS = {
    "_process_image_to_pil": "evo_vlac's: the preparation that VLAC was trained with",
    "_shutdown_requested_date": "RQ's: whether a signal has asked the worker to end",
    "_process": "RQ's scheduler has no other sign of its process",
    "_function": "Ray's: the function behind a remote one",
}


@cache
def files() -> dict[str, ast.Module]:
    """Every file of the packages, by its path from the root."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a file imports: at its top, under TYPE_CHECKING, within functions, or by import_module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: imports are absolute here")
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
                yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def file_of(name: str) -> str | None:
    """The file of a module, or of the module that a dotted name is in."""
    for dotted in (name, name.rpartition(".")[0]):
        path = dotted.replace(".", "/")
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate in files():
                return candidate
    return None


@cache
def imports() -> dict[str, set[str]]:
    """Each file with the files that it imports."""
    found = {file: {file_of(name) for name in imported_names(tree)} for file, tree in files().items()}
    return {file: {target for target in targets if target not in (None, file)} for file, targets in found.items()}


@cache
def the_map() -> tuple[dict[str, str], dict[str, set[str]]]:
    """The page's table: the group of each path, and the groups that each group may import."""
    rows = re.findall(r"^\| \*\*(\w+)\*\* \| (.+?) \|(.*?)\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    groups = {path: group for group, paths, _ in rows for path in re.findall(r"`([\w/.]+)`", paths)}
    return groups, {group: {group, *re.findall(r"\w+", arrows)} for group, _, arrows in rows}


def group_of(file: str) -> str:
    """The group of the longest path on the map that the file lies in."""
    groups, _ = the_map()
    return groups[max((path for path in groups if file.startswith(path)), key=len)]


def test_every_file_on_the_map_is_there_and_every_arrow_leads_to_a_group() -> None:
    groups, arrows = the_map()
    assert len(arrows) >= 10
    assert [path for path in groups if not (ROOT / path).exists()] == []
    assert {name for names in arrows.values() for name in names} == set(arrows)


def test_files_import_what_the_map_allows() -> None:
    _, arrows = the_map()
    wrong = [
        f"{file} ({group_of(file)}) imports {target} ({group_of(target)})"
        for file, targets in imports().items()
        for target in sorted(targets)
        if group_of(target) not in arrows[group_of(file)] and (file, target) not in UNLIKE_THE_MAP
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_one_another_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def reaches(tree: ast.Module) -> Iterator[str]:
    """Places where a private member of something other than self is touched, with their lines."""
    imports_of = (node for node in ast.walk(tree) if isinstance(node, ast.Import))
    modules = {alias.asname or alias.name for node in imports_of for alias in node.names}

    def of_self(node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in ("self", "cls")

    def members(node: ast.ClassDef) -> set[str]:
        methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        return methods | {
            each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and of_self(each.value)
        }

    def walk(node: ast.AST, own: set[str]) -> Iterator[str]:
        if isinstance(node, ast.ClassDef):
            own = members(node)
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and node.attr not in own:
            holder = ast.unparse(node.value)
            if not of_self(node.value) and holder != "super()" and holder not in modules:
                yield f"{node.lineno}: {holder}.{node.attr}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, own)

    return walk(tree, set())


def test_private_members_are_touched_by_their_own_class_alone() -> None:
    found = [
        f"{file}:{reach}"
        for file, tree in files().items()
        if not file.startswith("benchmarks/")
        for reach in reaches(tree)
        if reach.rpartition(".")[2] not in OF_OTHER_PROJECTS
    ]
    assert not found, "\n".join(found)
