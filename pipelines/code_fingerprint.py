"""Which code a stage runs, as a fingerprint: of the module that it calls and of every module of ours that this reaches.

Comments, docstrings, blank lines and layout do not count, so editing them trains nothing again. Nor does code that
the stage cannot reach: a change of the HTML report leaves the models as they are.
"""

import ast
from functools import cache
from pathlib import Path

from recsys.atomic_io import fingerprint_value

REPOSITORY = Path(__file__).resolve().parent.parent


def code_fingerprint(module: str, repository: Path = REPOSITORY) -> str:
    """Of the named module, of what it reaches below `recsys` and `pipelines`, and of Feast's definitions."""
    found = reachable_code(module, repository)
    found |= {path: _meaning(path)[0] for path in (repository / "feature_repo").rglob("*.py")}
    return fingerprint_value(sorted((str(path.relative_to(repository)), code) for path, code in found.items()))


def reachable_code(module: str, repository: Path = REPOSITORY) -> dict[Path, str]:
    """The files that the named module imports, directly or not, itself included; and what each says."""
    found: dict[Path, str] = {}
    pending = [module]
    while pending:
        path = _file(pending.pop(), repository)
        if path is not None and path not in found:
            found[path], imported = _meaning(path)
            pending += imported
    return found


def _file(module: str, repository: Path) -> Path | None:
    """None for what is not ours, and for a name of a module that is no module."""
    if module.partition(".")[0] not in ("recsys", "pipelines"):
        return None
    path = repository.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


@cache
def _meaning(path: Path) -> tuple[str, tuple[str, ...]]:
    """What a file's code says, without docstrings, and the names that it imports, wherever it does so."""
    tree = ast.parse(path.read_bytes())
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        elif isinstance(node, ast.Import):
            imported += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return fingerprint_value(ast.dump(tree)), tuple(imported)
