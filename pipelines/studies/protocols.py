"""`recsys protocol`: the whole system under two published protocols beside replay.

Both fit models of their own. Nothing of the pipeline is decided by these tables (docs/protocols.md).
"""

import time
from pathlib import Path

import pandas as pd

from pipelines.pipeline import Pipeline
from pipelines.studies import leave_last_out, stratified
from recsys.atomic_io import fingerprint_files
from recsys.columns import ITEM_ID
from recsys.data.layouts import find_layout, read_events
from recsys.data.validate import BadRows
from recsys.errors import ConfigError, DataError
from recsys.evaluation.about import about
from recsys.evaluation.protocols import LEAVE_LAST_OUT, STRATIFIED
from recsys.evaluation.study import StudyRun, write_study


def run(pipeline: Pipeline, protocol: str, data_dir: Path | None = None) -> str:
    """Measure by one protocol and write `reports/protocol-<name>.json` and `.md`; the Markdown.

    `data_dir` has the official files that the data set was made from: the stratified split draws a number a row, in the
    order of that file. Without it, files that `recsys data` downloaded are taken, and where there are none either, the
    order of the tables: the same rule, other parts. Raises ConfigError for a `data_dir` that the protocol does not
    read, DataError for other files or too few events.
    """
    command = f"recsys protocol {protocol}" + (" --data-dir FOLDER" if data_dir is not None else "")
    of_run = StudyRun(pipeline.data.tables.info, about(command))
    if protocol == STRATIFIED:
        result = stratified.measure(pipeline, of_run, *events_in_file_order(pipeline, data_dir))
    elif data_dir is None:
        result = leave_last_out.measure(pipeline, of_run)
    else:
        raise ConfigError(f"--data-dir goes with the protocol {STRATIFIED}, not with {LEAVE_LAST_OUT}; leave it out.")
    return write_study(pipeline.home.reports, f"protocol-{protocol}", result, result.markdown())


def events_in_file_order(pipeline: Pipeline, data_dir: Path | None) -> tuple[pd.DataFrame, str]:
    """The events as the official file lists them, and which order that is. Raises DataError for files of other data."""
    home, data = pipeline.home, pipeline.data
    if data_dir is None and not home.raw.is_dir():
        pipeline.report(
            "stratified: rows in the order of the tables, since the official files are not here (--data-dir)"
        )
        return data.tables.events, "tables"
    layout = find_layout(data_dir or home.raw)
    given, made_from = fingerprint_files(layout.files), data.tables.info.fingerprint
    if given != made_from:
        raise DataError(
            f"{layout.folder} holds other files ({given[:12]}) than those that {home.name} was made from "
            f"({made_from[:12]}). Name their folder with --data-dir, or run `recsys data` with this one."
        )
    return read_events(layout, data.tables.items[ITEM_ID], BadRows(), now=time.time()), layout.ratings.name
