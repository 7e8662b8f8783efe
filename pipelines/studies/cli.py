"""The commands that study a trained system: each makes one table or picture that the documentation shows."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli import Dataset, HomeFolder, opened

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

    print(protocols.run(opened(dataset, home, later_ratings="none"), name, data_dir), end="")


@app.command()
def diversity(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """Replay the test window for several degrees of the diversity re-rank: what variety costs.

    Writes diversity.md and diversity.json to the data set's reports.
    """
    from pipelines.studies.diversity import run

    print(run(opened(dataset, home)), end="")


@app.command()
def ablate(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """Fit the ranker without each retriever and each group of features, and replay: what each part is worth.

    Writes ablation.md, ablation.json and ablation.png to the data set's reports.
    """
    from pipelines.studies.ablation import run

    print(run(opened(dataset, home)), end="")


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
    home: HomeFolder = None,
) -> None:
    """Search hyper-parameters on the validation window (T1, T2]; nothing later is read (docs/tuning.md).

    Writes tuning.md and tuned.json to the data set's reports; copy the last to pipelines/tuned/ where
    `recsys train` looks for settings. A search that was stopped goes on where it was; more --trials continue it. The
    merge uses the two-tower model and the ranker all retrievers that `recsys train` left.

    Example: `recsys tune --parts ease,ials --trials 30`
    """
    from pipelines.studies import tuning, tuning_report

    chosen = tuning.USUAL if parts is None else [name.strip() for name in parts.split(",")]
    pipeline = opened(dataset, home, tuned=False, later_ratings="none")
    made = tuning.run(pipeline, chosen, trials=trials)
    print(tuning_report.summary(tuning.OBJECTIVES, made).markdown(), end="")
