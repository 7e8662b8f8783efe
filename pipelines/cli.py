"""The commands of the offline track. Results go to stdout, progress to stderr.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from recsys.limits import EARLIEST_TIME, LARGEST_ID, MOST_RECOMMENDED

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline
    from recsys.settings import Settings

app = typer.Typer(no_args_is_help=True)
models = typer.Typer(no_args_is_help=True, help="Versions in the model registry: list, compare, promote, roll back.")
app.add_typer(models, name="models")

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m, ml-latest-small, ml-latest, "
        "synthetic, or a name that an earlier command made. Default: the data set used last.",
    ),
]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for everything that a run writes. Default: RECSYS_HOME, else .recsys/."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with files in an official MovieLens layout, read where it is.")
]
Archive = Annotated[Path | None, typer.Option(help="A MovieLens ZIP file that is already here.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Put bad rows into quarantine.csv and go on; otherwise an error.")
]
Users = Annotated[int | None, typer.Option(help="Synthetic world only: number of users.")]
Items = Annotated[int | None, typer.Option("--movies", help="Synthetic world only: number of movies.")]
Events = Annotated[int | None, typer.Option(help="Synthetic world only: number of ratings.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Moment = Annotated[
    int | None,
    typer.Option(
        min=EARLIEST_TIME,
        help="Moment of the recommendation, seconds UTC. Default: a minute after what each user did last.",
    ),
]
Length = Annotated[int, typer.Option("--k", min=1, max=MOST_RECOMMENDED, help="How many items a user.")]
Version = Annotated[str, typer.Argument(help="Version number or alias, for instance challenger.")]


@app.command()
def data(
    dataset: Dataset = None,
    data_dir: DataDir = None,
    archive: Archive = None,
    skip_bad_rows: SkipBadRows = False,
    users: Users = None,
    items: Items = None,
    events: Events = None,
    seed: Seed = 1,
    home: HomeFolder = None,
) -> None:
    """Fetch a data set and turn it into checked, typed tables.

    Downloads from GroupLens, or reads files that are already here, or makes the synthetic world.

    Examples: `recsys data --dataset ml-100k`, `recsys data --data-dir ~/ml-1m`,
    `recsys data --dataset synthetic --users 6040 --movies 3700 --events 1000000`
    """
    from pipelines.obtain import obtain

    size = {"n_users": users, "n_items": items, "n_events": events}
    obtain(_settings(home), dataset, data_dir, archive, skip_bad_rows, size, seed)


@app.command()
def train(
    dataset: Dataset = None,
    data_dir: DataDir = None,
    archive: Archive = None,
    skip_bad_rows: SkipBadRows = False,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Refit through the last event for production after evaluation.")
    ] = True,
    only: Annotated[str | None, typer.Option(help="Run this one stage; pipelines/stages.py names them.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Skip no stage, changed or not.")] = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the two-tower model trains.")] = "cpu",
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of the two-tower model.")] = None,
    index: Annotated[Literal["auto", "exact", "ivf"], typer.Option(help="FAISS index.")] = "auto",
    budget_ms: Annotated[float, typer.Option(min=0.001, help="p99 latency that the gate allows, milliseconds.")] = 50.0,
    seed: Seed = 7,
    tuned: Annotated[
        bool, typer.Option("--tuned/--no-tuned", help="Use the settings that were searched for this data set, if any.")
    ] = True,
    home: HomeFolder = None,
) -> None:
    """Train, evaluate and register: the whole offline pipeline.

    Takes the tables of `recsys data`; with --data-dir, --archive or a --dataset that is not here yet, it fetches them
    first. Stages whose inputs did not change are skipped. Ends with the quality leaderboard and a registered version.

    Example: `recsys train --data-dir ~/ml-100k`
    """
    from pipelines.obtain import obtain_if_needed
    from pipelines.stages import train as run

    pipeline = opened(
        obtain_if_needed(_settings(home), dataset, data_dir, archive, skip_bad_rows),
        home,
        tuned=tuned,
        later_ratings="new" if only is None else "taken",
        device=device,
        epochs=epochs,
        index=index,
        latency_budget_ms=budget_ms,
        seed=seed,
        refit=refit,
    )
    run(pipeline, only=only, force=force)


@app.command()
def evaluate(
    dataset: Dataset = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Also write a Parquet row a test event: user_id, timestamp, item_id, ranked (500 ids)."
        ),
    ] = None,
    home: HomeFolder = None,
) -> None:
    """Replay the test window and print the leaderboard.

    Uses the model frozen at T2, never the one refitted through the last event. Every event after T2 is predicted from
    what its user had done strictly before it; all items of the catalogue are ranked.

    Example: `recsys evaluate --dump ranks.parquet`
    """
    from pipelines import evaluation

    pipeline = opened(dataset, home)
    evaluation.evaluate(pipeline.data, pipeline.home, pipeline.report, dump)


@app.command()
def status(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """What the data set holds, what its models learnt from, and how many ratings wait for the next training."""
    from pipelines import training_set

    settings = _settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    with contextlib.closing(settings.event_table(chosen)) as table:
        print(training_set.status(chosen, table))


@app.command()
def recommend(
    user: Annotated[int, typer.Option("--user", "-u", min=0, max=LARGEST_ID, help="User id as in the data set.")],
    k: Length = 10,
    at: Moment = None,
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """Print one user's recommendations, without a service.

    Example: `recsys recommend --user 1 --k 5`
    """
    from pipelines.recommending import print_recommendations

    print_recommendations(opened(dataset, home), user, k, at)


@app.command()
def batch(
    out: Annotated[Path, typer.Option(dir_okay=False, help="Parquet file to write: user_id, rank, item_id, score.")],
    k: Length = 10,
    at: Moment = None,
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """Write recommendations for every user of the data set.

    Example: `recsys batch --k 10 --out recommendations.parquet`
    """
    from pipelines.recommending import write_batch

    write_batch(opened(dataset, home), out, k, at)


@app.command()
def quickstart(
    dataset: Dataset = None,
    user: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_ID, help="Whose list to show. Default: the last active user.")
    ] = None,
    home: HomeFolder = None,
) -> None:
    """From nothing to recommendations over HTTP: data, training, evaluation, registration, service, one request.

    Where MovieLens cannot be reached it says so and goes on with the synthetic world.
    """
    from pipelines.quickstart import run

    settings = _settings(home)
    run(dataset or settings.dataset or "ml-100k", user, settings)


@app.command()
def retrain(
    dataset: Dataset = None,
    once: Annotated[bool, typer.Option("--once", help="One look, and whatever follows from it.")] = False,
    watch: Annotated[float | None, typer.Option(min=1, help="Look again every so many seconds, for ever.")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="JSON with what differs from RetrainPolicy. Default: retrain.json of the data set."),
    ] = None,
    home: HomeFolder = None,
) -> None:
    """Train again when the policy says so, and lead the new version through gate, shadow and canary to champion.

    The state is in the registry: a run that was killed is continued by the next. A version that harms is rolled back.

    Examples: `recsys retrain --once`, `recsys retrain --watch 30`
    """
    from pipelines.retraining import run

    if once == (watch is not None):
        raise typer.BadParameter("give either --once or --watch SECONDS")
    if watch is None:
        run.once(dataset, _settings(home), policy)
    else:
        run.watch(dataset, _settings(home), watch, policy)


@models.command("list")
def models_list(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """All versions of a data set's model, newest first, with their quality and aliases."""
    from pipelines.versions import print_versions

    print_versions(opened(dataset, home).registry)


@models.command("compare")
def models_compare(
    a: Annotated[str, typer.Argument(help="Version number or alias.")],
    b: Annotated[str, typer.Argument(help="Version number or alias to hold against it.")],
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit code 1 where B is worse than A; 2 where that is unknown.")
    ] = False,
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """What differs between two versions: metrics with intervals, and settings.

    Measured on the same events, they are compared event by event: the verdict is that of the 95 % interval of the
    difference in NDCG@10, from a paired bootstrap over users.

    Example: `recsys models compare champion challenger --fail-if-worse`
    """
    from pipelines.versions import print_comparison

    print_comparison(opened(dataset, home).registry, a, b, fail_if_worse=fail_if_worse)


@models.command("promote")
def models_promote(
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Also a version that the gate refused.")] = False,
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """Make a version the champion; a running service follows within seconds."""
    from pipelines.versions import promote

    registry = opened(dataset, home).registry
    info = promote(registry, version, force=force)
    print(f"version {info.version} of {registry.model_name} is champion; a running service swaps within seconds")


@models.command("rollback")
def models_rollback(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """Make the previous champion champion again."""
    registry = opened(dataset, home).registry
    info = registry.rollback()
    print(f"version {info.version} of {registry.model_name} is champion again; a running service swaps to it")


def _settings(home: Path | None) -> "Settings":
    from recsys.settings import read_settings

    return read_settings(home)


def opened(dataset: str | None, home: Path | None, **options: Any) -> "Pipeline":
    """The pipeline of a data set that has been prepared; `options` are those of `open_pipeline`."""
    from pipelines.pipeline import open_pipeline

    return open_pipeline(dataset, _settings(home), **options)
