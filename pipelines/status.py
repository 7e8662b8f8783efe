"""`recsys status`: what a data set holds, what its models learnt from, and what waits for the next training."""

import contextlib

from pipelines import training_set
from pipelines.stage_runner import read_record
from recsys.data.tables import load_tables
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace


def status(home: DatasetWorkspace, settings: Settings) -> str:
    """A few lines."""
    info = load_tables(home.data).info
    registered = read_record(home.stages, "register")
    trained = "not trained yet"
    if registered is not None:
        later = training_set.load(home).n_later
        trained = f"trained {registered.finished_utc[:19]} UTC on these and {later:,} later ratings"
    return "\n".join(
        [
            f"data     {info.label}: {info.n_events:,} ratings, {info.n_items:,} items, {info.n_users:,} users",
            f"model    {trained}",
            f"waiting  {waiting(home, settings)}",
        ]
    )


def waiting(home: DatasetWorkspace, settings: Settings) -> str:
    """How many ratings the next training would take."""
    with contextlib.closing(settings.event_table(home)) as table:
        n = training_set.waiting(home, table)
    return f"{n:,} ratings in the event table" + ("; `recsys train` takes them" if n else "")
