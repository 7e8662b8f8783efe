"""Every notebook runs from top to bottom, says nothing wrong, and defines no logic."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
CELL_LIMIT_S = 120
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

pytestmark = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def _code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_defines_no_logic_and_imports_only_the_library(path: Path) -> None:
    for cell in _code(path):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, LOGIC), f"cell {cell.id} defines something at line {node.lineno}"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"pipelines", "serving"}, cell.id


def test_is_kept_without_outputs(path: Path) -> None:
    for cell in _code(path):
        assert cell.outputs == [], f"cell {cell.id} has outputs; strip them"
        assert cell.execution_count is None, f"cell {cell.id} has an execution count; strip it"


def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with the kernel of this very environment and nothing of the user's configuration."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=CELL_LIMIT_S, resources={"metadata": {"path": str(workplace)}}
    )
    client.execute()  # a cell that raises is a CellExecutionError
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert [o for o in outputs if o.output_type == "error"] == []
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    assert list(workplace.iterdir()) == []
