"""What a hyper-parameter search found, for people and for `pipelines.config`.

Stage: a study beside the pipeline. In: what the studies hold (`tuning`). Out: `reports/tuning.json` with every trial,
`tuning.md`, and `tuned.json`, the settings alone. Absent: the search, and any choice.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.job import Job
from recsys.artefacts import replacing_file, write_json
from recsys.evaluation.ladder import utc


def write(job: Job, result: Mapping[str, Any], tuned: Mapping[str, Any]) -> None:
    write_json(job.home.reports / "tuning.json", result)
    write_json(job.home.reports / "tuned.json", tuned)
    with replacing_file(job.home.reports / "tuning.md") as beside:
        beside.write_text(markdown(result), encoding="utf-8")


def markdown(result: Mapping[str, Any]) -> str:
    """A row for each part, then its settings, then every trial."""
    window, facts = result["window"], result["about"]
    lines = [
        "# Hyper-parameter search",
        "",
        f"Data: {result['data']['label']}. Validation window: events after {utc(window['after'])} through "
        f"{utc(window['through'])}; no later event is read. Trial 0 is the default. The best of many trials on one "
        "window is too good: how much is left of a gain, only the test window tells, and it chooses nothing.",
        "",
        summary(result).rstrip(),
    ]
    for name, part in result["parts"].items():
        lines += ["", f"## {name}", "", *_settings(part), "", *_trials(part)]
    run = "; ".join(f"{key}: {value}" for key, value in facts.items())
    again = "To keep the settings for later trainings: `recsys tune --save`, then check in the file that it names."
    return "\n".join([*lines, "", again, "", f"Measured: {run}."]) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """A row for each part: how much was tried, and what it gained over the default."""
    lines = [
        "| Part | Objective | Trials | Seconds | Default | Best | Gain |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for name, part in result["parts"].items():
        default, best = part["trials"][0]["value"], part["trials"][part["best"]]["value"]
        lines.append(
            f"| {name} | {part['objective']} | {len(part['trials'])} | {part['seconds']:.1f} | {default:.4f} | "
            f"{best:.4f} | {best - default:+.4f} |"
        )
    return "\n".join(lines) + "\n"


def _settings(part: Mapping[str, Any]) -> list[str]:
    default, best = part["trials"][0]["settings"], part["trials"][part["best"]]["settings"]
    rows = [f"| {key} | {default[key]:.4g} | {best[key]:.4g} |" for key in default]
    return ["| Setting | Default | Best |", "|:--|--:|--:|", *rows]


def _trials(part: Mapping[str, Any]) -> list[str]:
    keys = list(part["trials"][0]["settings"])
    rows = []
    for number, trial in enumerate(part["trials"]):
        settings = [f"{trial['settings'][key]:.4g}" for key in keys]
        cells = [f"{number}", f"{trial['value']:.4f}", f"{trial['seconds']:.2f}", *settings]
        rows.append(f"| {' | '.join(cells)} |")
    return [f"| Trial | Value | Seconds | {' | '.join(keys)} |", "|--:" * (3 + len(keys)) + "|", *rows]
