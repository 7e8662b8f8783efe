"""From a data set's name to its job, and through all stages.

Stage: all of the offline track. In: settings and what the user chose. Out: a `Job`; a trained, registered version.
Absent: argv (`cli`), and the stages themselves (`stages`).
"""

import typer

from pipelines.config import PipelineConfig, config_for, read_tuned, tuned_path, with_tuned
from pipelines.job import Job, run_stages
from pipelines.stages import stages
from recsys.data.tables import DatasetInfo, load_tables
from recsys.retrieval.index import Kind
from recsys.settings import Settings


def open_job(
    dataset: str | None,
    settings: Settings,
    *,
    device: str = "cpu",
    epochs: int | None = None,
    index: Kind = "auto",
    budget_ms: float = 50.0,
    seed: int = 7,
    refit: bool = True,
    tuned: bool = True,
) -> Job:
    """The job of a data set that has been prepared: the named one, or the one used last.

    `tuned` False leaves the tuned settings of a data set aside. A synthetic world has none, whatever its name. Raises
    ConfigError for a bad file of tuned settings.
    """
    root = settings.paths()
    home = root.choose(dataset or settings.dataset)
    tables = load_tables(home.data)
    info = tables.info
    config = config_for(
        tables.events,
        device=device,
        epochs=epochs,
        index=index,
        seed=seed,
        refit=refit,
        latency_budget_ms=budget_ms,
        feature_store=settings.feature_store(home).address,
    )
    if tuned:
        config = _tuned(config, info)
    return Job(root, home, settings, config, tables, report=_report)


def _report(line: str) -> None:
    typer.echo(line, err=True)


def _tuned(config: PipelineConfig, info: DatasetInfo) -> PipelineConfig:
    """The rules with the tuned settings of these very data over them. A name alone is not enough: a data set may be
    published anew under its old name."""
    path = tuned_path(info.name)
    if info.synthetic or not path.exists():
        return config
    found = read_tuned(path)
    if found.fingerprint == info.fingerprint:
        return with_tuned(config, found)
    _report(f"settings: {path} was searched on other data than this {info.name}; the rules hold (docs/tuning.md)")
    return config


def train(job: Job, *, only: str | None = None, force: bool = False) -> None:
    """Run what is not up to date and say where the time went."""
    if job.config.tuned is not None:
        job.report(f"settings: tuned for {job.config.tuned} (docs/tuning.md); --no-tuned leaves them aside")
    try:
        run_stages(job, stages(job.config.refit), only=only, force=force)
    finally:
        job.store.close()
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in job.seconds.items())
    job.report(f"where the time went, seconds: {parts}; {sum(job.seconds.values()):.0f} in all")
