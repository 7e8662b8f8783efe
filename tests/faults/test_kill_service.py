"""kill -9 in the middle of event writes. Kept: every acknowledged event, in the log and in its user's state, once.

TESTS_KILLS says how many kills; `python -m tests.faults.kill_service --times 200` is the same with figures.
"""

import os
from pathlib import Path

from tests.serving.serving_world import DATASET, build

from .kill_service import run

KILLS = int(os.environ.get("TESTS_KILLS", "5"))


def test_every_acknowledged_event_is_there_once(tmp_path: Path) -> None:
    build(tmp_path)
    figures = run(tmp_path, DATASET, KILLS)
    print(figures)
    assert figures.kills == KILLS
    assert figures.acknowledged > 10 * KILLS
    assert figures.in_doubt > 0
    assert (figures.lost, figures.twice) == (0, 0)
    assert figures.lines == figures.acknowledged
