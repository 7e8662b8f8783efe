"""The console command `recsys`: one door, whose rooms are the Typer apps of `pipelines` and `serving`.

Stage: the edge. In: argv. Out: exit code 0, 2 for a problem that the reader can act on (its text on stderr, no
traceback), 130 after Ctrl-C. Absent: the commands themselves; they announce themselves as entry points, so that
neither folder imports the other (docs/adr/0003).
"""

import atexit
import errno
import os
import sys
from importlib.metadata import entry_points

import typer

from recsys.errors import RecsysError

GROUP = "recsys.commands"
STOPPED = 130  # by Ctrl-C, as shells count it
# What a folder or a disk refuses, not what a programmer forgot.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
ORDER = (  # commands first, then groups: Typer lists them so
    *("quickstart", "data", "train", "evaluate", "recommend", "batch", "serve"),
    *("diversity", "ablate", "tune", "keep", "skew"),
    *("bench", "logs", "models"),
)


def build() -> typer.Typer:
    """The composed app; commands in the order in which one uses them."""
    app = typer.Typer(
        name="recsys",
        help="A two-stage recommender from raw ratings to ranked recommendations over HTTP.\n\n"
        "In order: data, train, evaluate, recommend, batch, serve, bench, models. "
        "Studies of a trained system: diversity, ablate, tune; keep copies what they and evaluate wrote. "
        "All that a run writes lies below RECSYS_HOME (default .recsys/).",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        part: typer.Typer = entry.load()
        app.registered_commands.extend(part.registered_commands)
        app.registered_groups.extend(part.registered_groups)

    def place(item: typer.models.CommandInfo | typer.models.TyperInfo) -> int:
        name = item.name or getattr(item.callback, "__name__", None)  # a command is named after its function
        return ORDER.index(name) if name in ORDER else len(ORDER)

    app.registered_commands.sort(key=place)
    app.registered_groups.sort(key=place)
    return app


def run(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code. `arguments` None means argv."""
    try:
        build()(arguments)
    except RecsysError as error:
        print(f"recsys: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = error.filename2 or error.filename or "a file"
        print(f"recsys: {where}: {error.strerror}. Name a place that can be read and written.", file=sys.stderr)
        return 2
    except SystemExit as finished:  # how Typer ends, after help, wrong arguments and Ctrl-C too
        code = finished.code if isinstance(finished.code, int) else int(finished.code is not None)
        if code == STOPPED:
            print("recsys: stopped; finished stages are kept, run the same command again to go on", file=sys.stderr)
        return code
    return 0


def main() -> None:
    """The console script. Leaves without tearing the interpreter down: DuckDB's binding would list its leaks there."""
    code = run()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
