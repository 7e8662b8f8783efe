"""`recsys protocol`: the whole system under two published protocols beside replay.

Both fit models of their own. Nothing of the pipeline is decided by these tables (docs/protocols.md).
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.pipeline import Pipeline
from pipelines.studies import leave_last_out, stratified
from recsys.atomic_io import fingerprint_files, replacing_file, write_json
from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.data.layouts import find_layout, read_events
from recsys.data.validate import BadRows
from recsys.errors import ConfigError, DataError
from recsys.evaluation.about import about
from recsys.evaluation.protocols import LEAVE_LAST_OUT, STRATIFIED, ProtocolResult
from recsys.evaluation.tables import with_facts


def run(pipeline: Pipeline, protocol: str, data_dir: Path | None = None) -> ProtocolResult:
    """Measure by one protocol and write `reports/protocol-<name>.json`, `.txt` and `.md`.

    `data_dir` has the official files that the data set was made from: the stratified split draws a number a row, in the
    order of that file. Without it, files that `recsys data` downloaded are taken, and where there are none either, the
    order of the tables: the same rule, other parts. Raises ConfigError for an unknown protocol and for a `data_dir`
    that the protocol does not read, DataError for other files or too few events.
    """
    command = f"recsys protocol {protocol}"
    facts = {"protocol": protocol}
    if protocol == STRATIFIED:
        events, facts["row_order"] = events_in_file_order(pipeline, data_dir)
        found = stratified.measure(pipeline, events)
        command += " --data-dir FOLDER" if data_dir is not None else ""
    elif protocol == LEAVE_LAST_OUT:
        if data_dir is not None:
            raise ConfigError(f"--data-dir goes with the protocol {STRATIFIED}; leave it out.")
        found = leave_last_out.measure(pipeline)
    else:
        raise ConfigError(f"There is no protocol {protocol!r}; take {STRATIFIED} or {LEAVE_LAST_OUT}.")
    run_facts = about(command)
    place = pipeline.home.reports / f"protocol-{protocol}.json"
    write_json(place, {**facts, "about": run_facts, **found.to_json()})
    for ending, text in ((".txt", found.text()), (".md", with_facts(found.markdown(), run_facts))):
        with replacing_file(place.with_suffix(ending)) as beside:
            beside.write_text(text, encoding="utf-8")
    pipeline.report(f"tables: {place.with_suffix('.md')}")
    return found


def events_in_file_order(pipeline: Pipeline, data_dir: Path | None) -> tuple[pd.DataFrame, str]:
    """The events as the official file lists them, and which order that is. Raises DataError for files of other data."""
    folder = data_dir or pipeline.home.raw
    if data_dir is None and not folder.is_dir():
        pipeline.report(
            "stratified: rows in the order of the tables, since the official files are not here (--data-dir)"
        )
        return pipeline.data.tables.events, "tables"
    layout = find_layout(folder)
    made_from = pipeline.data.tables.info.fingerprint
    if (given := fingerprint_files(layout.files)) != made_from:
        raise DataError(
            f"{layout.folder} holds other files ({given[:12]}) than those that {pipeline.home.name} was made from "
            f"({made_from[:12]}). Name their folder with --data-dir, or run `recsys data` with this one."
        )
    events = read_events(layout, pipeline.data.tables.items[ITEM_ID], BadRows(), now=time.time())
    keys = [USER_ID, ITEM_ID, TIMESTAMP]
    ours, theirs = (frame[keys].sort_values(keys).to_numpy() for frame in (pipeline.data.tables.events, events))
    if not np.array_equal(ours, theirs):
        raise DataError(
            f"{layout.ratings} and the tables of {pipeline.home.name} differ in their rows; run `recsys data`."
        )
    return events, layout.ratings.name
