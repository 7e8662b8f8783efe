"""What a new bundle is called.

Stage: evaluate and produce. In: data set, role, the clock. Out: a name. Absent: the bundle.
"""

from datetime import UTC, datetime


def new_bundle_id(dataset: str, role: str) -> str:
    """Unique by its moment: <dataset>-<UTC time>-<role>."""
    return f"{dataset}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{role}"
