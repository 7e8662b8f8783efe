"""`recsys train`: the stages that are not up to date, and where the time went."""

from pipelines.pipeline import Pipeline
from pipelines.stage_runner import run_stages
from pipelines.stages import stages


def train(pipeline: Pipeline, *, only: str | None = None, force: bool = False) -> None:
    """Run what is not up to date, or one stage."""
    data, config, report = pipeline.data, pipeline.config, pipeline.report
    if config.tuned is not None:
        report(f"settings: tuned for {config.tuned} (docs/tuning.md); --no-tuned leaves them aside")
    info = data.tables.info
    later = f" and {data.n_later:,} later events" if data.n_later else ""
    report(f"training on {data.source.n_events:,} ratings of {info.label}{later}")
    try:
        found = stages(pipeline)
        seconds = run_stages(found, pipeline.home.stages, info.fingerprint, report, only=only, force=force)
    finally:
        pipeline.close()
    parts = ", ".join(f"{name} {s:.0f}" for name, s in seconds.items())
    report(f"where the time went, seconds: {parts}; {sum(seconds.values()):.0f} in all")
