"""The shape of the repository: what may lie where, which packages it needs, and what importing must not do.

Import directions are import-linter's; the container files have `test_containers`.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    *("pyproject.toml", "README.md", "recsys", "feature_repo", "pipelines", "serving", "notebooks", "tests"),
    *("docker-compose.yml", "Makefile", "Dockerfile", "constraints.txt", ".ci", "docs", "CHANGELOG.md", "LICENSE"),
    *(".gitignore", ".dockerignore", "mkdocs.yml"),
}
MOST_LINES = 350
LARGEST_BYTES = 500_000
MOVIELENS = ("u.*", "ratings.*", "movies.dat", "movies.csv", "users.dat", "links.csv", "tags.*", "genome-*", "ml-*.zip")
MODELS = ("*.pkl", "*.pickle", "*.joblib", "*.pt", "*.pth", "*.npy", "*.npz", "*.h5", "*.parquet", "*.db", "*.faiss")


def tracked() -> list[str]:
    """Paths that git tracks or, not being ignored, would track."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    out = subprocess.run(git, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip("not a git checkout")
    return sorted({p for p in out.stdout.split("\0") if p and (ROOT / p).exists()})


def modules() -> list[Path]:
    return sorted(p for package in ("recsys", "pipelines", "serving") for p in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
    return {name.split(".")[0] for name in names}


def test_top_level_is_the_agreed_one() -> None:
    top = {PurePosixPath(p).parts[0] for p in tracked()}
    assert top - TOP == set(), "not in the design"
    assert TOP - top == set(), "missing"


def test_every_module_opens_with_what_it_is_for_and_is_short() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert len(text.splitlines()) <= MOST_LINES, f"{path} is too long"


def test_no_drawer_for_odds_and_ends() -> None:
    for name in tracked():
        parts = {re.sub(r"\.py$", "", part) for part in PurePosixPath(name).parts}
        assert not {"util", "utils", "helper", "helpers", "common", "commons", "misc"} & parts, name


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["tracing"]]
    declared = {re.split(r"[\[<>=]", name)[0].lower() for name in needed}
    own = {"recsys", "pipelines", "serving"}
    packages_used = set().union(*(imported(p) for p in [*modules(), *(ROOT / "feature_repo").glob("*.py")]))
    packages = packages_distributions()
    for name in sorted(packages_used - own - set(sys.stdlib_module_names)):
        distributions = {d.lower().replace("_", "-") for d in packages[name]}
        assert distributions & declared, f"{name} is imported; pyproject.toml declares none of {distributions}"


def test_no_data_and_no_models_are_kept() -> None:
    for name in tracked():
        base = PurePosixPath(name).name
        assert not [p for p in (*MOVIELENS, *MODELS) if fnmatch(base, p)], name
        size = (ROOT / name).stat().st_size
        assert size < LARGEST_BYTES, f"{name} has {size:,} bytes"


def test_no_code_that_unpickles() -> None:
    """docs/adr/0009: bundles cannot run code on load; the training checkpoint is read with weights_only."""
    for path in modules():
        assert not imported(path) & {"pickle", "joblib", "cloudpickle", "dill", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_decisions_have_their_form_and_are_found() -> None:
    """Each ADR: number in name and title, the three sections, a price; each mention of one leads to a file."""
    decisions = {p.name[:4]: p for p in (ROOT / "docs" / "adr").glob("*.md")}
    for number, path in decisions.items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number} "), path.name
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], path.name
        assert "- \\+ " in text, path.name
        assert "- − " in text, path.name
    for name in tracked():
        if name.endswith((".py", ".md", ".toml", ".yaml", ".yml", ".ipynb")):
            for number in re.findall(r"adr/(\d{4})", (ROOT / name).read_text(encoding="utf-8")):
                assert number in decisions, f"{name} names docs/adr/{number}"


IMPORT_ALL = """
import importlib, json, logging, sys, threading
from pathlib import Path

sys.argv = ["recsys", "--no-such-option"]  # whoever parses it fails
handlers = len(logging.getLogger().handlers)
for name in json.loads(sys.stdin.read()):
    importlib.import_module(name)
print(json.dumps({
    "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    "handlers": len(logging.getLogger().handlers) - handlers,
    "files": sorted(str(p) for p in Path.cwd().parent.rglob("*") if p.is_file()),
}))
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No argv parsed, no file made, no thread, no log handler; in a fresh home and working directory."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in modules()]
    home, workplace = tmp_path / "here" / "home", tmp_path / "here" / "cwd"
    home.mkdir(parents=True)
    workplace.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),  # matplotlib's own cache is not ours to judge
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        cwd=workplace,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"an import prints: {done.stdout}"
    assert json.loads(done.stdout) == {"threads": [], "handlers": 0, "files": []}
