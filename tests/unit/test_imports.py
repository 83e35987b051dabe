"""Imports follow the order of layers: a package imports no package that is listed after it."""

import ast
from collections.abc import Iterator

from tests.conftest import REPOSITORY

ORDER = [
    "version",
    "text",
    "errors",
    "files",
    "locks",
    "options",
    "lazy",
    "example",
    "ranks",
    "adapter",
    "methods",
    "distributed",
    "command",
    "config",
    "data",
    "models",
    "generation",
    "engine",
    "ledger",
    "evaluation",
    "domains",
    "results",
    "planning",
    "report",
    "workflows",
    "selfcheck",
    "cli",
]


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the project's packages that a file imports at run time, without imports under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("codyra_llm."):
            yield str(node.module).split(".")[1]
        yield from imported(node)


def test_imports_run_down() -> None:
    root = REPOSITORY / "codyra_llm"
    files = [path.relative_to(root) for path in root.rglob("*.py") if path != root / "__init__.py"]
    place = {name: at for at, name in enumerate(ORDER)}
    assert {path.parts[0].removesuffix(".py") for path in files} == set(ORDER)
    for path in files:
        own = path.parts[0].removesuffix(".py")
        above = [name for name in imported(ast.parse((root / path).read_text())) if place[name] > place[own]]
        assert not above, f"{path} imports {above[0]}, which stands above {own}"


def test_files_are_short() -> None:
    long = [path for path in (REPOSITORY / "codyra_llm").rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert not long
