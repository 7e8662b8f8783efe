"""The commands that study a trained system: each makes one table or picture that the documentation shows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli import Dataset, HomeFolder

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

app = typer.Typer(no_args_is_help=True)


@app.command()
def protocol(
    name: Annotated[Literal["stratified", "leave-last-out"], typer.Argument(help="docs/protocols.md describes both.")],
    dataset: Dataset = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Stratified only: the official files, for the order of their rows.")
    ] = None,
    home: HomeFolder = None,
) -> None:
    """Measure the whole system under a published protocol, with models fitted for it alone.

    Example: `recsys protocol leave-last-out --dataset ml-100k`
    """
    from pipelines.studies import protocols

    print(protocols.run(_open(dataset, home, later_ratings="none"), name, data_dir), end="")


@app.command()
def diversity(
    dataset: Dataset = None,
    contexts: Annotated[
        int | None, typer.Option(min=1, help="At most so many moments, drawn at random. Default: the whole window.")
    ] = None,
    home: HomeFolder = None,
) -> None:
    """Replay the test window for several degrees of the diversity re-rank: what variety costs.

    Writes diversity.md, diversity.json and diversity.png to the data set's reports.

    Example: `recsys diversity --contexts 2000`
    """
    from pipelines.studies.diversity import run

    print(run(_open(dataset, home), contexts), end="")


@app.command()
def ablate(
    dataset: Dataset = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what an earlier run has measured.")] = False,
    home: HomeFolder = None,
) -> None:
    """Fit the ranker without each retriever and each group of features, and replay: what each part is worth.

    Writes ablation.md, ablation.json and ablation.png to the data set's reports. A run that was stopped goes on where
    it was.

    Example: `recsys ablate --dataset ml-100k`
    """
    from pipelines.studies.ablation import run

    print(run(_open(dataset, home), force=force), end="")


@app.command()
def tune(
    dataset: Dataset = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: ease, ials, item_knn, covisitation, popularity, rrf_weights, ranker, tower. "
            "Default: all but tower."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials a part, those of earlier runs counted.")] = 50,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after about so many minutes in all.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the best settings in pipelines/tuned/, where `recsys train` looks.")
    ] = False,
    home: HomeFolder = None,
) -> None:
    """Search hyper-parameters on the validation window (T1, T2]; nothing later is read (docs/tuning.md).

    Writes tuning.md, tuning.json and tuned.json to the data set's reports. A search that was stopped goes on where it
    was; more --trials continue it. The merge uses the two-tower model and the ranker all retrievers that `recsys train`
    left.

    Example: `recsys tune --parts ease,ials --trials 30`
    """
    from pipelines.studies import tuning, tuning_report

    chosen = tuning.USUAL if parts is None else [name.strip() for name in parts.split(",")]
    pipeline = _open(dataset, home, tuned=False, later_ratings="none")
    found = tuning.run(pipeline, chosen, trials=trials, minutes=minutes, save=save)
    print(tuning_report.summary(found).markdown(), end="")


@app.command()
def keep(
    folder: Annotated[Path, typer.Argument(help="Where to; a folder named after the data set is made in it.")],
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """Copy the tables and pictures of a data set's reports: everything that the studies and `evaluate` wrote.

    Example: `recsys keep docs/results --dataset ml-100k`
    """
    from pipelines.studies.keeping import keep as copy

    for path in copy(_open(dataset, home), folder):
        print(path)


def _open(dataset: str | None, home: Path | None, **options: Any) -> "Pipeline":
    from pipelines.pipeline import open_pipeline  # heavy libraries come late, so that `--help` answers at once
    from recsys.settings import read_settings

    return open_pipeline(dataset, read_settings(home), **options)
