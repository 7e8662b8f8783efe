"""The console command `recsys`, composed of the Typer apps of `pipelines` and `serving`.

They announce themselves as entry points, so that neither folder imports the other (docs/adr/0003). The exit code is 0,
2 for a problem that the reader can act on (a line on stderr, no traceback), 130 after Ctrl-C. Libraries are imported
inside the functions, so that Ctrl-C in the first second finds `run`.
"""

import atexit
import errno
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.errors import RecsysError

if TYPE_CHECKING:
    import typer

GROUP = "recsys.commands"
STOPPED = 130  # by Ctrl-C, as shells count it
# What a folder or a disk refuses, not what a programmer forgot.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
ORDER = (  # commands first, then groups: Typer lists them so
    *("quickstart", "data", "status", "train", "retrain", "evaluate", "recommend", "batch", "serve"),
    *("protocol", "diversity", "ablate", "tune", "monitor", "skew"),
    *("bench", "experiment", "logs", "models"),
)


def build() -> "typer.Typer":
    """The composed app; commands in the order in which one uses them."""
    from importlib.metadata import entry_points

    import typer

    app = typer.Typer(
        name="recsys",
        help="A two-stage recommender from raw ratings to ranked recommendations over HTTP.\n\n"
        "In order: data, train, evaluate, recommend, batch, serve, bench, models. "
        "Studies: protocol, diversity, ablate, tune. "
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
        return _refuse(str(error))
    except KeyboardInterrupt:  # before Typer, or after it
        return _stopped()
    except SystemExit as finished:  # how Typer ends, after help, wrong arguments and Ctrl-C too
        code = finished.code if isinstance(finished.code, int) else int(finished.code is not None)
        return _stopped() if code == STOPPED else code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED:
            where = error.filename2 or error.filename or "a file"
            return _refuse(f"{where}: {error.strerror}. Name a place that can be read and written.")
        if line := _damage(error, sys.argv[1:] if arguments is None else arguments):
            return _refuse(line)
        raise
    return 0


def _refuse(line: str) -> int:
    print(f"recsys: {line}", file=sys.stderr)
    return 2


def _stopped() -> int:
    print("recsys: stopped; finished stages are kept, run the same command again to go on", file=sys.stderr)
    return STOPPED


def _damage(error: Exception, arguments: list[str]) -> str | None:
    """What is wrong with the home that the command was about, if anything."""
    from recsys.damage import explain
    from recsys.settings import read_settings

    named = [after for option, after in pairwise(arguments) if option == "--home"]
    named += [option.removeprefix("--home=") for option in arguments if option.startswith("--home=")]
    return explain(error, read_settings(Path(named[-1]) if named else None).paths().root)


def main() -> None:
    """The console script. Leaves without tearing the interpreter down: DuckDB's binding would list its leaks there."""
    try:
        code = run()
        atexit._run_exitfuncs()
    except KeyboardInterrupt:
        code = STOPPED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
