"""What must hold throughout a soak test, and the report as text.

Stage: serving (soak test). In: the dict of `soak.run` before its verdict. Out: a list of checks, each with a sentence;
text. Absent: the load (`soak_load`) and the events (`soak`).

    answers        each is for who was asked, with its own id, without an item that the user has rated
    server errors  none but shed load (503 "overloaded"), and no request without an answer
    malformed      every malformed request is refused with its own status, and no other is
    reloads        every promotion is seen in /v1/model and counted as a swap
    degradations   what the answers say was left out is what /metrics counts, part by part
    store          while it was away answers said so; at the end they say so no more
    memory         of the process, at the end against after the warm-up, has grown by at most 5 %
"""

import statistics
from typing import Any

GROWTH = 0.05
BACK_WITHIN_S = 5.0  # of the store: by then the pause of the circuit breaker is over
LATE = 0.01  # of the answers after that may still miss a state, as any may whose read took too long
WARM = (0.15, 0.3)  # share of the time whose memory is "after the warm-up"; the end is the last tenth


def checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """name, passed and a sentence each."""
    result, counted, seconds = report["result"], report["counted"], report["result"]["seconds"]
    wrong = dict(result["wrong"])
    errors = {kind: wrong.pop(kind, 0) for kind in ("server error", "no answer")}
    refusals = {kind: wrong.pop(kind, 0) for kind in ("malformed accepted", "refused")}
    answered = result["statuses"].get("200", 0)
    parts = sorted({*result["degraded"], *(n.split(".", 1)[1] for n in counted if n.startswith("degraded."))})
    differing = {
        part: (result["degraded"].get(part, 0), counted.get(f"degraded.{part}", 0))
        for part in parts
        if result["degraded"].get(part, 0) != counted.get(f"degraded.{part}", 0)
    }
    promised, swaps = len(report["reloads"]), counted.get("reload.swapped", 0)
    seen = sum(reload["seen_after_s"] is not None for reload in report["reloads"])
    asked = report["options"]["reloads"]
    return [
        _check("answers", not any(wrong.values()), f"{answered} answers, {_counts(wrong) or 'all as they must be'}"),
        _check("server errors", not any(errors.values()), _counts(errors) or "none but shed load"),
        _check("malformed", not any(refusals.values()), f"{result['malformed']} sent; {_counts(result['refused'])}"),
        _check(
            "reloads",
            seen == swaps == promised == asked,
            f"{asked} asked for, {promised} promoted, {seen} seen in /v1/model, {swaps} counted as swapped",
        ),
        _check(
            "degradations",
            not differing,
            f"answers and /metrics differ (answers, counted): {differing}"
            if differing
            else f"as counted: {_counts(result['degraded']) or 'none'}",
        ),
        _store_check(report, seconds),
        _memory_check(report["memory_mib"], seconds),
    ]


def _store_check(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    unreadable, outage = report["result"]["unreadable"], report["outage_s"]
    if outage is None:
        return _check("store", False, "it was not taken away")
    back_s = outage[1] + BACK_WITHIN_S
    told = sum(outage[0] <= at <= back_s for at in unreadable)
    later = sum(at > back_s for at in unreadable) / max(report["result"]["requests"] * (1 - back_s / seconds), 1.0)
    said = f"away for {outage[1] - outage[0]:.1f} s, {told} answers said so; of those after it was back {later:.2%}"
    return _check("store", told > 0 and later <= LATE, said)


def _memory_check(samples: list[list[float]], seconds: float) -> dict[str, Any]:
    warm = [mib for at, mib in samples if WARM[0] * seconds <= at < WARM[1] * seconds]
    end = [mib for at, mib in samples if at >= 0.9 * seconds]
    if not warm or not end:
        return _check("memory", False, "it was not measured")
    first, last = statistics.median(warm), statistics.median(end)
    growth = last / first - 1
    return _check(
        "memory", growth <= GROWTH, f"{first:.0f} MiB after the warm-up, {last:.0f} at the end: {growth:+.1%}"
    )


def _check(name: str, passed: bool, said: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "said": said}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n)


def text(report: dict[str, Any]) -> str:
    """For people; the last line says what was found."""
    result = report["result"]
    shown = ("p50_ms", "p99_ms", "max_ms")
    latency = ", ".join(f"{name.removesuffix('_ms')} {result['latency'].get(name, 0):.1f}" for name in shown)
    lines = [
        f"{report['dataset']['label']}: {result['requests']} requests in {result['seconds']:.0f} s at "
        f"{report['rate']:.0f}/s; milliseconds {latency}; {_counts(result['statuses'])}"
    ]
    for check in report["checks"]:
        lines.append(f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['name']:14} {check['said']}")
    lines += [f"        {line}" for line in result["told"]]
    failed = [check["name"] for check in report["checks"] if not check["passed"]]
    return "\n".join([*lines, f"Violated: {', '.join(failed)}." if failed else "Everything held."])
