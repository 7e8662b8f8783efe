"""The same closed loop by `wrk`, which nobody here wrote, so that our own generator can be believed.

Stage: serving (benchmark). In: a `Plan` of a closed loop. Out: wrk's p50, p99 and rate beside ours, and their ratios.
Absent: wrk itself (`apt-get install wrk`); without it the section says so.

wrk adds to its histogram what it thinks was left out: for an answer that took more than twice the mean, answers at
that time less one mean, less two, and so on (`stats_correct`). Its percentiles are therefore held against ours with
the same addition (`Load.corrected`). The two take turns, and the medians of the turns are compared.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import RecsysError
from serving.bench.load import Load, Plan

TURNS = 3
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
  io.write(string.format(
    'FOUND {"requests": %%d, "us": %%d, "p50_us": %%d, "p99_us": %%d, "errors": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
NAMES = ("rate", "p50_ms", "p99_ms")


def compare(plan: Plan, measure: Callable[[Plan], Load]) -> dict[str, Any]:
    """wrk's and our figures, their ratio (ours / wrk's), and whether each lies within TOLERANCE of 1; a message where
    there is no wrk, or it got errors for answers."""
    program = shutil.which("wrk")
    if program is None:
        return {"message": MISSING}
    turns: dict[str, list[dict[str, float]]] = {"wrk": [], "ours": []}
    once = replace(plan, requests=None, seconds=max(plan.seconds / TURNS, 1.0))
    for _ in range(TURNS):
        load = measure(once)
        turns["ours"].append({"rate": load.latency["n"] / load.seconds, **load.corrected})
        try:
            turns["wrk"].append(run(program, once))
        except RecsysError as error:
            return {"clients": plan.clients, "message": f"nothing to compare: {error}"}
    middle = {who: {name: float(np.median([t[name] for t in ts])) for name in NAMES} for who, ts in turns.items()}
    ratio = {name: middle["ours"][name] / middle["wrk"][name] for name in NAMES}
    agrees = all(abs(value - 1) <= TOLERANCE for value in ratio.values())
    return {"clients": plan.clients, **middle, "ratio": ratio, "agrees": agrees, "tolerance": TOLERANCE}


def run(program: str, plan: Plan) -> dict[str, float]:
    """One run of wrk: one thread, as many connections as the plan has clients. Raises RecsysError where it fails or
    has errors, because times of errors compare with nothing."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "paths.lua"
        script.write_text(SCRIPT % ", ".join(json.dumps(path) for path in plan.paths), encoding="utf-8")
        command = [program, "-t1", f"-c{plan.clients}", f"-d{round(plan.seconds)}s", "-s", str(script), plan.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=plan.seconds + 60)
    return parse(done.stdout + done.stderr)


def parse(said: str) -> dict[str, float]:
    """What the script printed at the end."""
    found = re.search(r"^FOUND (\{.*\})$", said, re.MULTILINE)
    if found is None:
        raise RecsysError(f"wrk did not finish: {(said.strip().splitlines() or ['it said nothing'])[-1]}")
    values = json.loads(found[1])
    if values["errors"] or not values["requests"]:
        raise RecsysError(f"wrk had {values['errors']} errors in {values['requests']} requests")
    return {
        "rate": values["requests"] / values["us"] * 1e6,
        "p50_ms": values["p50_us"] / 1e3,
        "p99_ms": values["p99_us"] / 1e3,
    }
