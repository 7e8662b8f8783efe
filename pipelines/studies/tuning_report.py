"""What a hyper-parameter search found, for people and for `pipelines.config`.

Stage: a study beside the pipeline. In: what the studies hold (`tuning`). Out: `reports/tuning.json` with every trial,
`tuning.md`, and `tuned.json`, the settings alone; on request the file in `pipelines/tuned/`, part by part. Absent: the
search, and any choice.

Where the checked-in file keeps a part of an earlier search, that part's facts say in `run` which run it was.
`about.run` is the run of the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import (
    ABOUT,
    OF_RETRIEVERS,
    RANKER,
    RRF,
    TOWER,
    Tuned,
    read_tuned,
    tuned_path,
    with_tuned,
)
from pipelines.job import Job
from recsys.atomic_io import replacing_file, write_json
from recsys.evaluation.leaderboard import utc


def write(job: Job, result: Mapping[str, Any]) -> None:
    write_json(job.home.reports / "tuning.json", result)
    write_json(job.home.reports / "tuned.json", tuned(result))
    with replacing_file(job.home.reports / "tuning.md") as beside:
        beside.write_text(markdown(result), encoding="utf-8")


def tuned(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `pipelines.config.with_tuned` reads: the best settings of every part, and where they come from."""
    settings = {name: part["trials"][part["best"]]["settings"] for name, part in result["parts"].items()}
    facts = {
        name: {
            "objective": part["objective"],
            "default": part["trials"][0]["value"],
            "best": part["trials"][part["best"]]["value"],
            "trials": len(part["trials"]),
        }
        for name, part in result["parts"].items()
    }
    return _content(settings, {"data": result["data"], "run": result["about"], "validation": facts})


def require_sound(job: Job) -> None:
    """Raises ConfigError where `save` would meet a file that a training refuses."""
    path = tuned_path(job.tables.info.name)
    if path.exists():
        found = read_tuned(path)
        if found.fingerprint == job.tables.info.fingerprint:
            with_tuned(job.config, found)


def save(job: Job, result: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Put the named parts into the checked-in file. Its other parts stay, with their facts, where they are of the same
    data; a file of other data begins anew."""
    path, fingerprint = tuned_path(job.tables.info.name), job.tables.info.fingerprint
    content = tuned({**result, "parts": {name: part for name, part in result["parts"].items() if name in parts}})
    if path.exists():
        earlier = read_tuned(path)
        old = [name for name in _by_part(earlier.content) if name not in _by_part(content)]
        if earlier.fingerprint != fingerprint:
            job.report(f"tune: {path} was searched on other data of that name; it begins anew, without its parts")
        elif old:
            content = _merged(content, earlier.content, old)
            job.report(f"tune: kept from earlier searches: {', '.join(old)}, as found beside the settings of then")
    if unnamed := [name for name in result["parts"] if name not in parts]:
        job.report(f"tune: not saved, because this command did not name them: {', '.join(unnamed)}")
    with_tuned(job.config, Tuned(path, fingerprint, content))  # refuses what a later training would refuse
    write_json(path, content)
    job.report(f"tune: saved as {path}; `recsys train` uses it from now on. Check it in: git add {path}")


def _content(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The form of a tuned file, from the settings of each part."""
    alone = {name: settings[name] for name in (RRF, RANKER, TOWER) if name in settings}
    return {**alone, OF_RETRIEVERS: {name: settings[name] for name in settings if name not in alone}, ABOUT: facts}


def _by_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of each part, from the form of a tuned file."""
    alone = {name: content[name] for name in (RRF, RANKER, TOWER) if name in content}
    return {**content.get(OF_RETRIEVERS, {}), **alone}


def _merged(content: Mapping[str, Any], earlier: Mapping[str, Any], old: Sequence[str]) -> dict[str, Any]:
    """`content` with the parts `old` of an earlier file."""
    new, settings, about = content[ABOUT], _by_part(earlier), earlier[ABOUT]
    run = {"run": about["run"]} if "run" in about else {}
    facts = {name: {**run, **about.get("validation", {}).get(name, {})} for name in old}
    whole = {**_by_part(content), **{name: settings[name] for name in old}}
    return _content(whole, {**new, "validation": {**new["validation"], **facts}})


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
