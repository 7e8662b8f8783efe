"""The same closed loop by `wrk`, which nobody here wrote, so that our own generator can be believed.

Stage: serving (benchmark). In: a `Plan` of a closed loop. Out: wrk's p50, p99 and rate beside ours, and their ratios.
Absent: wrk itself (`apt-get install wrk`); without it the section says so.

wrk adds to its histogram what it thinks was left out: for an answer that took more than twice the mean, answers at
that time less one mean, less two, and so on (`stats_correct` in its retriever). One stall would then decide the p99 of
either. The addition is exact and is taken out again (`as_measured`), so that the durations of answers are compared.

The two take many short turns, in the order ABBA, so that a machine that changes its speed meanwhile changes it for
both; percentiles are those of the durations of all turns together.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys.errors import RecsysError
from serving.bench.histogram import Counted, pooled
from serving.bench.load import Load, Plan
from serving.bench.sweep import LOST

TURNS = 10
SHORTEST_S = 2.0  # of a turn: wrk counts its time in steps of 100 ms
TOLERANCE = 0.15
MISSING = "wrk is not installed; `apt-get install wrk` brings it"
SCRIPT = """\
local paths = {%s}
local at = 0
request = function()
  at = at + 1
  return wrk.format("GET", paths[(at - 1) %% #paths + 1])
end
done = function(summary, latency, requests)
  local e = summary.errors
  local counted = {}
  for i = 1, #latency do
    local us, count = latency(i)
    counted[i] = string.format("[%%d, %%d]", us, count)
  end
  io.write(string.format('FOUND {"requests": %%d, "us": %%d, "errors": %%d, "counted": [%%s]}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    table.concat(counted, ", ")))
end
"""
NAMES = ("rate", "p50_ms", "p99_ms")


def compare(plan: Plan, measure: Callable[[Plan], Load]) -> dict[str, Any]:
    """wrk's and our figures, their ratio (ours / wrk's), and whether each lies within TOLERANCE of 1; a message where
    there is no wrk, or it got errors for answers."""
    program = shutil.which("wrk")
    if program is None:
        return {"message": MISSING}
    turns: dict[str, list[Turn]] = {"wrk": [], "ours": []}
    once = replace(plan, requests=None, seconds=max(plan.seconds / TURNS, SHORTEST_S))
    for number in range(TURNS):
        for who in ("ours", "wrk") if number % 2 else ("wrk", "ours"):
            try:
                turns[who].append(run(program, once) if who == "wrk" else _ours(measure(once)))
            except RecsysError as error:
                return {"clients": plan.clients, "message": f"nothing to compare: {error}"}
    found = {who: _together(ts) for who, ts in turns.items()}
    ratio = {name: found["ours"][name] / found["wrk"][name] for name in NAMES}
    agrees = all(abs(value - 1) <= TOLERANCE for value in ratio.values())
    return {"clients": plan.clients, **found, "ratio": ratio, "agrees": agrees, "tolerance": TOLERANCE}


@dataclass(frozen=True)
class Turn:
    """answers within `seconds`; their durations"""

    answers: int
    seconds: float
    counted: list[Counted]


def _ours(load: Load) -> Turn:
    return Turn(int(load.latency["n"]), load.seconds, load.counted)


def _together(turns: Sequence[Turn]) -> dict[str, float]:
    """NAMES of all turns."""
    durations = pooled(turn.counted for turn in turns).summary()
    rate = sum(turn.answers for turn in turns) / sum(turn.seconds for turn in turns)
    return {"rate": rate, "p50_ms": durations["p50_ms"], "p99_ms": durations["p99_ms"]}


def run(program: str, plan: Plan) -> Turn:
    """One run of wrk: one thread, as many connections as the plan has clients. Raises RecsysError where it fails, or
    where more than LOST of its answers are errors, because their times compare with nothing."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "paths.lua"
        script.write_text(SCRIPT % ", ".join(json.dumps(path) for path in plan.paths), encoding="utf-8")
        command = [program, "-t1", f"-c{plan.clients}", f"-d{round(plan.seconds)}s", "-s", str(script), plan.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=plan.seconds + 60)
    return parse(done.stdout + done.stderr, plan.clients)


def parse(said: str, clients: int) -> Turn:
    """What the script printed at the end."""
    found = re.search(r"^FOUND (\{.*\})$", said, re.MULTILINE)
    if found is None:
        raise RecsysError(f"wrk did not finish: {(said.strip().splitlines() or ['it said nothing'])[-1]}")
    values = json.loads(found[1])
    requests, errors = values["requests"], values["errors"]
    if not requests or errors > LOST * requests:
        raise RecsysError(f"wrk had {errors} errors in {requests} requests")
    counted = [(us, count) for us, count in values["counted"]]
    each = requests // clients  # as wrk counts, in whole numbers
    if each:
        counted = as_measured(counted, values["us"] // each)
    if sum(count for _, count in counted) != requests:
        raise RecsysError(f"wrk's histogram does not hold its {requests} requests; this is another wrk than 4.1")
    return Turn(requests, values["us"] / 1e6, counted)


def as_measured(counted: Sequence[Counted], interval_us: int) -> list[Counted]:
    """Without wrk's addition, from the longest duration down: each added one at every whole number of intervals below
    itself that was still longer than one.

    >>> as_measured([(10, 9), (28, 4), (52, 3), (76, 3), (100, 1)], 24)
    [(10, 9), (28, 1), (76, 2), (100, 1)]
    """
    left = dict(counted)
    for us in sorted(left, reverse=True):
        for added in range(us - interval_us, interval_us, -interval_us):
            left[added] = left.get(added, 0) - left[us]
    return [(us, count) for us, count in sorted(left.items()) if count]
