"""`recsys recommend` and `recsys batch`: the champion's answers without a service.

Stage: the edge. In: the champion bundle and the states in Feast's online store. Out: text, or a Parquet file for
every user. Absent: any path to an answer other than `Recommender.recommend`.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from pipelines.evaluation import require_same_data
from pipelines.job import Job
from recsys.atomic_io import replacing_file
from recsys.bundle import Bundle, load_bundle
from recsys.columns import CHAMPION, ITEM_ID, RANK, SCORE, USER_ID
from recsys.errors import ConfigError, StoreError
from recsys.features.item_stats import day_of
from recsys.features.state import StateBatch, UserState, state_batch
from recsys.recommender import RequestContext

BATCH = 256
BATCH_SCHEMA = pa.schema([(USER_ID, pa.int64()), (RANK, pa.int32()), (ITEM_ID, pa.int64()), (SCORE, pa.float32())])


def champion(job: Job) -> Bundle:
    """The bundle that serves, fetched from the registry."""
    bundle = load_bundle(job.registry.download(CHAMPION, job.home.bundles), ranker_threads=2)
    require_same_data(job, bundle)
    return bundle


def _context(job: Job, bundle: Bundle, at: int) -> RequestContext:
    if at <= job.split.end:
        raise ConfigError(
            f"--at {at} lies before the last event of {job.home.name} ({job.split.end}): the stored states already "
            "know what came after it. For the past there is `recsys evaluate --dump`."
        )
    day = min(int(day_of(at)), job.store.last_snapshot_day())
    return RequestContext(job.store.item_stats_as_of(bundle.recommender.catalogue, day))


def _states(job: Job, bundle: Bundle, user_ids: list[int], at: int) -> StateBatch:
    stored = job.store.online_states(user_ids)
    lost = [u for u, s in zip(user_ids, stored, strict=True) if s is None and job.histories.user_idx(u) >= 0]
    if lost:
        raise StoreError(
            f"The online store has no state of user {lost[0]} ({len(lost)} in all), who is in the tables of "
            f"{job.home.name}. Fill it with `recsys train --only features --force`."
        )
    states = [s[0] if s is not None else UserState(user_id) for user_id, s in zip(user_ids, stored, strict=True)]
    seen = [s[1] if s is not None else np.empty(0, dtype=np.int64) for s in stored]
    return state_batch(bundle.recommender.catalogue, states, seen, at)


def print_recommendations(job: Job, user_id: int, k: int, at: int) -> None:
    """One user's list with titles, beside which data set and version it came from. `at`: the moment, seconds UTC."""
    bundle = champion(job)
    catalogue = bundle.recommender.catalogue
    states = _states(job, bundle, [user_id], at)
    answer = bundle.recommender.recommend(states, _context(job, bundle, at), k)
    known = "" if not states.cold[0] else " (unknown: the answer for a newcomer)"
    typer.echo(f"{bundle.facts.dataset.label}, {bundle.facts.bundle_id}, user {user_id}{known}")
    for place, (item_id, score) in enumerate(zip(answer.item_ids[0], answer.scores[0], strict=True)):
        if item_id >= 0:
            idx = int(catalogue.to_idx(item_id))
            watch, like = answer.watch_probability[0, place], answer.like_probability[0, place]
            typer.echo(
                f"{place + 1:3}  {score:8.3f}  {item_id:7}  {catalogue.titles[idx]}  "
                f"{', '.join(catalogue.genres_of(idx))}"
                + ("" if np.isnan(watch) else f"  watch {watch:.1%}, like {like:.0%}")
            )


def write_batch(job: Job, out: Path, k: int, moment: int) -> None:
    """A row for each user and rank, as of `moment` (seconds UTC). Who has seen almost everything gets what is left."""
    bundle = champion(job)
    context = _context(job, bundle, moment)
    user_ids = job.histories.user_ids.tolist()
    tell = job.progress("batch: users")
    rows = 0
    with replacing_file(out) as beside, pq.ParquetWriter(beside, BATCH_SCHEMA) as writer:
        for low in range(0, len(user_ids), BATCH):
            part = user_ids[low : low + BATCH]
            answer = bundle.recommender.recommend(_states(job, bundle, part, moment), context, k)
            row, column = np.nonzero(answer.item_ids >= 0)
            table = {
                USER_ID: np.asarray(part, dtype=np.int64)[row],
                RANK: (column + 1).astype(np.int32),
                ITEM_ID: answer.item_ids[row, column],
                SCORE: answer.scores[row, column],
            }
            writer.write_table(pa.table(table, schema=BATCH_SCHEMA))
            rows += len(row)
            tell(low + len(part), len(user_ids))
    typer.echo(f"{rows:,} rows for {len(user_ids):,} users of {bundle.facts.dataset.label}: {out}", err=True)
