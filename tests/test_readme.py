"""What the documents tell people to type exists: every command, option, make target, path and route.

Command lines are parsed by the real app, down to types and required options, without running the command.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer

from recsys.command import ORDER, build

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPED = README + "".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("commands", "http", "deployment")
)
SERVICE = "http://127.0.0.1:8000"


def blocks(language: str, text: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(text: str = TYPED) -> Iterator[list[str]]:
    """Every command line of the bash blocks as words; continued lines are joined, comments left out."""
    for block in blocks("bash", text):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def parse_recsys(words: list[str]) -> str:
    """Parse the words after `recsys` with the real app; the name of the command. Raises what the app would raise."""
    command = typer.main.get_command(build())
    path = ["recsys"]
    context = None
    rest = list(words)
    while hasattr(command, "commands"):
        group = command.make_context(path[-1], rest[:1], parent=context)
        name, *rest = rest
        assert name in command.commands, f"{' '.join(path)} has no command {name!r}"
        context, command = group, command.commands[name]
        path.append(name)
    command.make_context(path[-1], rest, parent=context)
    return " ".join(path[1:])


RECSYS_LINES = [words[1:] for words in lines() if Path(words[0]).name == "recsys"]
MAKE_LINES = [words[1:] for words in lines() if words[0] == "make" or words[1:2] == ["make"]]
CURL_LINES = [words[1:] for words in lines() if words[0] == "curl"]


@pytest.mark.parametrize("words", RECSYS_LINES, ids=" ".join)
def test_recsys_line_parses(words: list[str]) -> None:
    parse_recsys(words)


def test_every_command_is_shown() -> None:
    assert {words[0] for words in RECSYS_LINES} == set(ORDER)


def test_other_commands_are_known_ones() -> None:
    known = {"recsys", "make", "curl", "git", "cd", "cp", ".", "&&"}
    for words in lines():
        first = next(w for w in words if not re.fullmatch(r"[A-Z_]+=\S*", w))
        assert Path(first).name in known, words


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
    used = [words[words.index("make") :] if "make" in words else ["make", *words] for words in MAKE_LINES]
    assert {"quickstart", "test"} <= {word for words in used for word in words}
    for words in used:
        for word in words[1:]:
            name, given, _ = word.partition("=")
            assert name in (variables if given else targets), word


def test_tree_names_what_exists_and_every_folder() -> None:
    """Lines of the tree block look like `path/  # comment`, indented by two spaces a level."""
    (tree,) = [b for b in blocks("text", README) if "recsys/" in b and "pipelines/" in b]
    shown: set[str] = set()
    stack: list[str] = []
    for line in tree.splitlines():
        match = re.fullmatch(r"(?P<indent> *)(?P<name>[\w./-]+) {2,}(?P<comment>\S.*)", line)
        assert match, f"not `name  comment`: {line!r}"
        stack[len(match["indent"]) // 2 :] = [match["name"]]
        path = "".join(stack)
        assert (ROOT / path).exists(), f"{path} is in the README's tree only"
        assert (ROOT / path).is_dir() == path.endswith("/"), path
        shown.add(path)
    for package in ("recsys", "pipelines", "serving"):
        for module in (ROOT / package).rglob("__init__.py"):
            folder = module.parent.relative_to(ROOT).as_posix() + "/"
            assert folder in shown, f"{folder} is missing from the README's tree"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_and_named_modules_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target
    for name in re.findall(r"`((?:recsys|pipelines|serving|tests|feature_repo)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_setting_is_in_the_table() -> None:
    from recsys.settings import Settings

    names = {str(f.validation_alias or f"RECSYS_{name.upper()}") for name, f in Settings.model_fields.items()}
    rows = [line.split("|")[1] for line in TYPED.splitlines() if line.startswith(("| `RECSYS_", "| `MLFLOW_"))]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == names


def test_the_readme_is_short_and_its_results_are_those_of_the_kept_tables() -> None:
    assert len(README.splitlines()) <= 150
    for name in ("ml-100k", "ml-latest-small"):
        kept = (ROOT / "docs" / "results" / name / "leaderboard.md").read_text(encoding="utf-8")
        block = re.search(rf"<!-- leaderboard:{name} -->\n(.*?)<!-- /leaderboard -->", README, re.DOTALL)
        assert block, name
        shown = re.findall(r"0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]", block[1])
        assert len(shown) == 3, "the system, the best single method, popularity"
        assert all(figure in kept for figure in shown)


def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "https://fonts" not in (tmp_path / "index.html").read_text(encoding="utf-8")


OpenApi = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def openapi() -> OpenApi:
    from fastapi import FastAPI

    from serving.http import routes

    app = FastAPI()
    app.include_router(routes.api)
    app.include_router(routes.writes)
    app.include_router(routes.health)
    return app.openapi()


@pytest.mark.parametrize("words", CURL_LINES, ids=" ".join)
def test_curl_line_fits_the_api(words: list[str], openapi: OpenApi) -> None:
    from serving.http import requests

    (url,) = [w for w in words if w.startswith("http")]
    assert url.startswith(SERVICE + "/"), url
    body = next((words[i + 1] for i, w in enumerate(words) if w in ("-d", "--data", "--json")), None)
    method = words[words.index("-X") + 1].lower() if "-X" in words else "get" if body is None else "post"
    parts = urlsplit(url)
    fitting = [p for p in openapi["paths"] if re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", p), parts.path)]
    assert len(fitting) == 1, f"{parts.path} fits {fitting}"
    assert method in openapi["paths"][fitting[0]], f"{fitting[0]} takes no {method}"
    route = openapi["paths"][fitting[0]][method]
    taken = {p["name"] for p in route.get("parameters", []) if p["in"] == "query"}
    assert set(parse_qs(parts.query)) <= taken
    if body is not None:
        reference = route["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        getattr(requests, reference.rsplit("/", 1)[1]).model_validate_json(body)
        assert json.loads(body)


def test_curl_covers_every_route(openapi: OpenApi) -> None:
    shown = [urlsplit(next(w for w in words if w.startswith("http"))).path for words in CURL_LINES]
    for path in openapi["paths"]:
        assert any(re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", path), s) for s in shown), f"no example for {path}"
