"""The shape of the repository: what may lie where, how modules open, and what the container files promise.

Stage: tests. In: the files that git tracks or would track. Out: pass or fail. Absent: import directions, which
import-linter holds.
"""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
import yaml

from tests.test_readme import parse_recsys

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    *("pyproject.toml", "README.md", "recsys", "feature_repo", "pipelines", "serving", "notebooks", "tests"),
    *("docker-compose.yml", "Makefile", "Dockerfile", "constraints.txt", ".ci", "docs", "CHANGELOG.md", "LICENSE"),
    *(".gitignore", ".dockerignore"),
}
MOST_LINES = 400
REASON = re.compile(r"^Longer than ", re.MULTILINE)  # begins the sentence that says why a file is long
LARGEST_BYTES = 500_000
MOVIELENS = ("u.*", "ratings.*", "movies.dat", "movies.csv", "users.dat", "links.csv", "tags.*", "genome-*", "ml-*.zip")
MODELS = ("*.pkl", "*.pickle", "*.joblib", "*.pt", "*.pth", "*.npy", "*.npz", "*.h5", "*.parquet", "*.db", "*.faiss")
FACTS = (r"\bStages?( `[`\w, ]+)?( and `\w+`)?:", r"\bIn:", r"\bOut:", r"\bAbsent:")


def tracked() -> list[str]:
    """Paths that git tracks or, not being ignored, would track."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    out = subprocess.run(git, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip("not a git checkout")
    return sorted({p for p in out.stdout.split("\0") if p and (ROOT / p).exists()})


def modules() -> list[Path]:
    return sorted(p for package in ("recsys", "pipelines", "serving") for p in (ROOT / package).rglob("*.py"))


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def test_top_level_is_the_agreed_one() -> None:
    found = {PurePosixPath(p).parts[0] for p in tracked()}
    assert found - TOP == set(), "not in the design"
    assert TOP - found == set(), "missing"


def test_long_files_say_why() -> None:
    for name in tracked():
        if name.endswith(".py"):
            n = len((ROOT / name).read_text(encoding="utf-8").splitlines())
            assert n <= MOST_LINES or REASON.search(docstring(ROOT / name)), f"{name} has {n} lines and no reason"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_opens_with_its_facts(path: Path) -> None:
    """What it is; then Stage, In, Out, Absent, in this order. A package's `__init__` and `__main__` need one line."""
    text = docstring(path)
    assert text, "no docstring"
    assert len(text.splitlines()[0]) > 10
    if path.name in ("__init__.py", "__main__.py"):
        return
    places = [m.start() if (m := re.search(fact, text)) else -1 for fact in FACTS]
    missing = [fact for fact, place in zip(("Stage", "In", "Out", "Absent"), places, strict=True) if place < 0]
    assert not missing, f"the docstring does not say {', '.join(missing)}"
    assert places == sorted(places), "In comes before Out, Out before Absent"


def test_no_drawer_for_odds_and_ends() -> None:
    for name in tracked():
        assert not re.fullmatch(r"(utils?|helpers?|commons?|misc)(\.py)?", PurePosixPath(name).name), name
        assert not {"utils", "helpers", "common", "misc"} & set(PurePosixPath(name).parts), name


def test_no_data_and_no_models_are_kept() -> None:
    for name in tracked():
        base = PurePosixPath(name).name
        assert not [p for p in (*MOVIELENS, *MODELS) if fnmatch(base, p)], name
        size = (ROOT / name).stat().st_size
        assert size < LARGEST_BYTES, f"{name} has {size:,} bytes"


def test_no_code_that_unpickles() -> None:
    """docs/adr/0009: bundles cannot run code on load; the training checkpoint is read with weights_only."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"pickle", "joblib", "cloudpickle", "dill", "shelve"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_decisions_have_their_form_and_are_found() -> None:
    """Each ADR: number in name and title, the three sections, a price; each mention of one leads to a file."""
    decisions = {p.name[:4]: p for p in (ROOT / "docs" / "adr").glob("*.md")}
    assert sorted(decisions) == [f"{n:04}" for n in range(1, len(decisions) + 1)]
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
import importlib, json, os, sys, threading
from pathlib import Path

root = Path(sys.argv[1])
read = []

class Argv(list):  # whoever in the repository looks at argv while it is imported is noted
    def _note(self):
        frame = sys._getframe(2)
        if Path(frame.f_code.co_filename).is_relative_to(root) and ".venv" not in frame.f_code.co_filename:
            read.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
    def __getitem__(self, key):
        self._note()
        return super().__getitem__(key)
    def __iter__(self):
        self._note()
        return super().__iter__()
    def __len__(self):
        self._note()
        return super().__len__()

sys.argv = Argv(["recsys", "--no-such-option"])
loggers = len(__import__("logging").getLogger().handlers)
for name in json.loads(sys.stdin.read()):
    importlib.import_module(name)
print(json.dumps({
    "argv": read,
    "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    "handlers": len(__import__("logging").getLogger().handlers) - loggers,
    "files": sorted(str(p) for p in Path.cwd().parent.rglob("*") if p.is_file()),
}))
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No argv read, no file or folder made, no thread, no log handler; in a fresh home and working directory."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in modules()]
    home, workplace = tmp_path / "here" / "home", tmp_path / "here" / "cwd"
    home.mkdir(parents=True)
    workplace.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),  # matplotlib's own cache is not ours to judge
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(ROOT)],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        cwd=workplace,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"an import prints: {done.stdout}"
    assert json.loads(done.stdout) == {"argv": [], "threads": [], "handlers": 0, "files": []}


# -- containers: there may be no engine here, so that the files are checked against the code they start ---------------

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"


def compose() -> dict[str, object]:
    """docker-compose.yml with `${NAME:-default}` at its defaults."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text(encoding="utf-8"))
    assert "${" not in text, "a variable without a default"
    return yaml.safe_load(text)


def instructions() -> Iterator[tuple[str, str]]:
    """(instruction, argument) of each line of the Dockerfile, continued lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, argument = line.partition(" ")
            yield name, argument.strip()


def settings_variables() -> set[str]:
    from recsys.settings import Settings

    prefix = Settings.model_config["env_prefix"]
    return {str(f.validation_alias or f"{prefix}{name.upper()}") for name, f in Settings.model_fields.items()}


def test_compose_commands_parse_and_start_what_they_should() -> None:
    services = compose()["services"]
    assert set(services) == {"trainer", "api"}
    (entry,) = [json.loads(argument) for name, argument in instructions() if name == "ENTRYPOINT"]
    assert entry == ["recsys"]
    assert parse_recsys(services["trainer"]["command"]) == "train"
    assert parse_recsys(services["api"]["command"]) == "serve"
    (default,) = [json.loads(argument) for name, argument in instructions() if name == "CMD"]
    assert parse_recsys(default) == "serve"


def test_compose_sets_only_known_variables() -> None:
    for service in compose()["services"].values():
        assert set(service.get("environment", {})) <= settings_variables()
    ours = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    for name, argument in instructions():
        if name == "ENV":
            assert {word.split("=")[0] for word in shlex.split(argument)} <= settings_variables() | ours


def test_compose_shares_one_home() -> None:
    document = compose()
    (home,) = {
        word.split("=", 1)[1]
        for name, argument in instructions()
        if name == "ENV"
        for word in shlex.split(argument)
        if word.startswith("RECSYS_HOME=")
    }
    (volume,) = document["volumes"]
    for service in document["services"].values():
        assert f"{volume}:{home}" in service["volumes"]
        assert service.get("environment", {}).get("RECSYS_HOME", home) == home
    assert document["services"]["api"]["depends_on"]["trainer"]["condition"] == "service_completed_successfully"


def test_ports_match() -> None:
    api = compose()["services"]["api"]
    command = api["command"]
    port = int(command[command.index("--port") + 1])
    assert command[command.index("--host") + 1] == "0.0.0.0", "or nothing outside the container reaches it"
    (published,) = api["ports"]
    address, _, container = published.split(":")
    assert address == "127.0.0.1", "there is no authentication: only this machine, unless somebody decides otherwise"
    assert int(container) == port
    assert f"http://127.0.0.1:{port}/readyz" in " ".join(api["healthcheck"]["test"])
    assert [int(argument) for name, argument in instructions() if name == "EXPOSE"] == [port]
    from serving.settings import ServiceSettings

    assert ServiceSettings.model_fields["port"].default == port


def test_containers_hold_no_secret_and_run_as_nobody_special() -> None:
    text = COMPOSE.read_text(encoding="utf-8") + DOCKERFILE.read_text(encoding="utf-8")
    assert not re.search(r"(?i)password|secret|token|api_?key", text)
    users = [argument for name, argument in instructions() if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    (base,) = [argument for name, argument in instructions() if name == "FROM"]
    assert re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base)


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    ignored = [
        line.strip().strip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    copied = [word for name, argument in instructions() if name == "COPY" for word in shlex.split(argument)[:-1]]
    copied = [word for word in copied if not word.startswith("--")]
    assert {"recsys", "pipelines", "serving", "feature_repo", "pyproject.toml", "constraints.txt"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists(), word
        assert not [p for p in ignored if fnmatch(word, p)], f"{word} is in .dockerignore"
    installs = [argument for name, argument in instructions() if name == "RUN" and "pip install" in argument]
    assert any("-c constraints.txt" in argument for argument in installs)
