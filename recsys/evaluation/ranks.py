"""The ranks that a model's metrics rest on, kept in `ranks.parquet` so that another model can be compared by event.

A row a test event, by (user_id, timestamp, item_id): int64 ids, seconds UTC, and `rank`, int32, 1 is best, 0 is not in
the list.
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.errors import BundleError
from recsys.evaluation.bootstrap import EVENT_KEY
from recsys.evaluation.metrics import check_rank

RANKS_FILE: Final = "ranks.parquet"
SCHEMA: Final = pa.schema([(USER_ID, pa.int64()), (TIMESTAMP, pa.int64()), (ITEM_ID, pa.int64()), (RANK, pa.int32())])


def write_ranks(frame: pd.DataFrame, path: Path) -> None:
    """Write the four columns of `frame`, others left out. Raises ValueError on a rank outside 0..LIST_LENGTH."""
    check_rank(frame[RANK].to_numpy())
    ordered = frame.sort_values([*EVENT_KEY])
    table = pa.table({name: ordered[name].to_numpy() for name in SCHEMA.names}, schema=SCHEMA)
    with replacing_file(path) as beside:
        pq.write_table(table, beside, compression="zstd")


def read_ranks(path: Path) -> pd.DataFrame:
    """What `write_ranks` wrote. Raises BundleError where the file is something else."""
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        raise BundleError(f"{path} cannot be read as Parquet ({error}); train again") from error
    if not table.schema.equals(SCHEMA):
        raise BundleError(f"{path} has the columns {table.schema.names}, not {SCHEMA.names} as written; train again")
    frame: pd.DataFrame = table.to_pandas()
    return frame
