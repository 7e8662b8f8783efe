"""What the registry keeps of a bundle, in MLflow's names and lengths, and how two versions differ.

Most of what makes NDCG@10 uncertain is which users the test window happens to hold, and that is the same for two
versions measured on the same events. So a verdict rests on the differences event by event and their 95 % interval from
a bootstrap over users: two intervals of means that overlap hide a drop that is real.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from recsys.atomic_io import read_json
from recsys.bundle import BundleFacts, read_facts
from recsys.columns import CHAMPION
from recsys.errors import BundleError, RegistryError
from recsys.evaluation.bootstrap import Estimate, PairedDifference, paired_difference
from recsys.evaluation.ranks import RANKS_FILE
from recsys.promotion_gate import NDCG, Measured, intervals

PAIRED: Final = (NDCG, "hr@10")  # the verdict is that of the first: two chances to be wrong would be more than 5 %
_LONGEST_PARAMETER: Final = 500  # what every MLflow server accepts; newer ones take more
_TAG: Final = "recsys."
METRICS_TAG: Final = _TAG + "metrics"
GATE_TAG: Final = _TAG + "gate"
_STEP: Final = _TAG + "step."
_LONGEST_REASON: Final = 4_000  # a tag holds 5000 characters


def model_name_for(dataset: str) -> str:
    """The registered model and the experiment of a data set: one data set's versions never meet another's."""
    return f"recsys-{dataset}"


@dataclass(frozen=True)
class Step:
    """What retraining did with a version (`pipelines.retraining.steps`), when (UTC) and why."""

    name: str
    moment_utc: str
    reason: str

    @property
    def tag(self) -> dict[str, str]:
        content = {"moment_utc": self.moment_utc, "reason": self.reason[:_LONGEST_REASON]}
        return {_STEP + self.name: json.dumps(content)}


@dataclass(frozen=True)
class VersionInfo:
    """A registered version. `metrics` are those of its sibling frozen at T2; `gate` is "not judged", "passed" or
    "refused", `gate_reasons` why it was refused; `ranks_sha256` is None where the bundle has no ranks; `steps` in the
    order of time, empty where `recsys retrain` did not make it."""

    version: int
    aliases: tuple[str, ...]
    created_utc: str
    run_id: str
    bundle_id: str
    dataset: str
    synthetic: bool
    fingerprint: str
    code_version: str
    metrics: Mapping[str, Any]
    gate: str
    gate_reasons: tuple[str, ...]
    bundle_sha256: str
    ranks_sha256: str | None
    trained_through: int
    through_seq: int
    steps: tuple[Step, ...]

    @property
    def ndcg(self) -> Estimate | None:
        return intervals(self.metrics).get(NDCG)

    @property
    def dataset_label(self) -> str:
        return f"{self.dataset} (synthetic, not MovieLens)" if self.synthetic else self.dataset

    @property
    def measured(self) -> Measured:
        """As the gate wants it."""
        name = f"the champion (version {self.version})" if CHAMPION in self.aliases else f"version {self.version}"
        return Measured(name, self.dataset, self.fingerprint, self.metrics)


@dataclass(frozen=True)
class Comparison:
    """Version b against version a. A value is None where one of them lacks it.

    metrics      of a and of b, by name
    parameters   of a and of b, those that differ
    differences  b minus a over the same events, for each metric of PAIRED; empty where the two cannot be paired
    problem      a sentence that says why they cannot
    """

    a: VersionInfo
    b: VersionInfo
    metrics: Mapping[str, tuple[Estimate | None, Estimate | None]]
    parameters: Mapping[str, tuple[str | None, str | None]]
    differences: Mapping[str, PairedDifference]
    problem: str | None

    @property
    def worse(self) -> bool | None:
        """None where that is unknown."""
        return self.differences[NDCG].below_zero if self.differences else None

    @property
    def verdict(self) -> str:
        if not self.differences:
            return f"No verdict, because the two cannot be compared event by event: {self.problem}"
        d, a, b = self.differences[NDCG], self.a.version, self.b.version
        if d.below_zero:
            outcome = f"Version {b} is worse than version {a}"
        elif d.above_zero:
            outcome = f"Version {b} is better than version {a}"
        else:
            outcome = f"Versions {a} and {b} cannot be told apart"
        return (
            f"{outcome}: NDCG@10 on {self.a.dataset_label} changes by {d.mean:+.4f} (95 % interval {d.low:+.4f}"
            f" to {d.high:+.4f}), paired over {d.n_events:,} events of {d.n_users:,} users."
        )


def pair(
    a: VersionInfo, b: VersionInfo, ranks: Callable[[int], pd.DataFrame]
) -> tuple[dict[str, PairedDifference], str | None]:
    """b minus a over the same test events, or none and why. `ranks` gives those of a version by its number; what it
    raises is the reason, not the caller's problem: the metrics can still be read side by side."""
    if (a.dataset, a.fingerprint) != (b.dataset, b.fingerprint):
        of_a, of_b = (f"{v.dataset_label} (data {v.fingerprint[:12]})" for v in (a, b))
        return {}, f"version {a.version} was measured on {of_a}, version {b.version} on {of_b}"
    try:
        differences = paired_difference(ranks(b.version), ranks(a.version), PAIRED)
    except (RegistryError, BundleError, ValueError) as error:
        return {}, str(error)
    if differences[NDCG].low is None:
        return {}, f"The test events are of {differences[NDCG].n_users} user(s), too few for an interval."
    return differences, None


def facts_of(folder: Path, role: str) -> BundleFacts:
    """The facts of a bundle with the given role. Raises BundleError where it is not one."""
    facts = read_facts(folder)
    if facts.role != role:
        raise BundleError(f"{folder} is a bundle for {facts.role}; one for {role} is wanted here.")
    if not is_folder_name(facts.bundle_id):
        raise BundleError(f"{folder}: bundle_id {facts.bundle_id!r} cannot name a folder.")
    return facts


def is_folder_name(bundle_id: str) -> bool:
    """Whether a bundle id, which may come from a server, stays inside the folder that it is put into."""
    return re.fullmatch(r"\w[\w.\-]*", bundle_id) is not None


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 over the relative paths and bytes of all files below a folder; hex. Empty folders do not count."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def version_tags(bundle: Path, facts: BundleFacts) -> dict[str, str]:
    """What `versions` must know without fetching the bundle, as tags of the model version."""
    tags = {
        "bundle_id": facts.bundle_id,
        "dataset": facts.dataset.name,
        "synthetic": json.dumps(facts.dataset.synthetic),
        "fingerprint": facts.dataset.fingerprint,
        "code_version": facts.code_version,
        "metrics": json.dumps(facts.metrics, sort_keys=True),
        "bundle_sha256": fingerprint_folder(bundle),
        "trained_through": str(facts.trained_through),
        "through_seq": str(facts.through_seq),
    }
    files = read_json(bundle / "bundle.json")["files"]
    tags |= {"ranks_sha256": files[RANKS_FILE]} if RANKS_FILE in files else {}
    return {_TAG + name: value for name, value in tags.items()}


def version_info(entity: Any, aliases: Mapping[str, int]) -> VersionInfo | None:
    """From MLflow's ModelVersion; None for a version that something else than `register` has put there."""
    tags = {key.removeprefix(_TAG): value for key, value in entity.tags.items() if key.startswith(_TAG)}
    if not {"bundle_sha256", "through_seq"} <= tags.keys():
        return None
    gate = json.loads(tags["gate"]) if "gate" in tags else None
    prefix = _STEP.removeprefix(_TAG)
    steps = (Step(tag.removeprefix(prefix), **json.loads(tags[tag])) for tag in tags if tag.startswith(prefix))
    version = int(entity.version)
    as_they_are = ("bundle_id", "dataset", "fingerprint", "code_version", "bundle_sha256")
    return VersionInfo(
        version=version,
        aliases=tuple(sorted(alias for alias, at in aliases.items() if at == version)),
        created_utc=datetime.fromtimestamp(entity.creation_timestamp // 1000, UTC).isoformat(),
        run_id=entity.run_id,
        synthetic=json.loads(tags["synthetic"]),
        metrics=json.loads(tags["metrics"]),
        gate="not judged" if gate is None else "passed" if gate["passed"] else "refused",
        gate_reasons=tuple(c["sentence"] for c in gate["checks"] if c["decides"] and not c["passed"]) if gate else (),
        ranks_sha256=tags.get("ranks_sha256"),
        trained_through=int(tags["trained_through"]),
        through_seq=int(tags["through_seq"]),
        steps=tuple(sorted(steps, key=lambda step: step.moment_utc)),
        **{name: tags[name] for name in as_they_are},
    )


def flat_parameters(parameters: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters by dotted name. A long value keeps its start and its SHA-256; `bundle.json` has it whole."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_parameters(value, f"{prefix}{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(text) > _LONGEST_PARAMETER:
            text = f"{text[: _LONGEST_PARAMETER - 80]}... sha256 {hashlib.sha256(text.encode()).hexdigest()}"
        flat[mlflow_name(prefix + name)] = text
    return flat


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every number by its MLflow name; the mean takes the metric's own name."""
    ends = [
        (mlflow_name(name) + end, value)
        for name, m in intervals(metrics).items()
        for end, value in (("", m.mean), (".low", m.low), (".high", m.high))
    ]
    return {name: value for name, value in ends if value is not None}


def mlflow_name(name: str) -> str:
    """MLflow refuses `@` and other signs in names; each is replaced so that two names never become one."""
    return re.sub(r"[^\w\-. :/]", lambda sign: f"_x{ord(sign[0]):x}_", name.replace("@", "_at_"))
