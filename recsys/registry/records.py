"""What the registry keeps of a bundle, and how it fits into MLflow's names and lengths.

Stage: register. In: `bundle.json` and MLflow's entities. Out: VersionInfo, and flat dictionaries that MLflow
accepts. Absent: MLflow itself, and any file of a bundle but `bundle.json`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys.atomic_io import read_json
from recsys.columns import CHAMPION
from recsys.errors import BundleError
from recsys.evaluation.ranks import RANKS_FILE
from recsys.promotion_gate import NDCG, GateResult, Interval, Measured, intervals

_MANIFEST: Final = "bundle.json"
_NEEDED: Final = ("bundle_id", "dataset", "trained_through", "role", "sibling_id", "code_version", "metrics")
_LONGEST_PARAMETER: Final = 500  # what every MLflow server accepts; newer ones take more
_TAG: Final = "recsys."
METRICS_TAG: Final = _TAG + "metrics"

NOT_JUDGED: Final = "not judged"


def model_name_for(dataset: str) -> str:
    """The registered model and the experiment of a data set: one data set's versions never meet another's."""
    return f"recsys-{dataset}"


@dataclass(frozen=True)
class VersionInfo:
    """A registered version. `metrics` are those of its sibling frozen at T2, as in `bundle.json`; `gate` is
    "not judged", "passed" or "refused", `gate_reasons` why it was refused; `evaluation_sha256` is None where no
    sibling was registered with it, `ranks_sha256` where the bundle does not carry the ranks of its test events."""

    version: int
    aliases: tuple[str, ...]
    created_utc: str
    run_id: str
    bundle_id: str
    dataset: str
    synthetic: bool
    fingerprint: str
    trained_through: int
    code_version: str
    metrics: Mapping[str, Any]
    gate: str
    gate_reasons: tuple[str, ...]
    bundle_sha256: str
    evaluation_id: str | None
    evaluation_sha256: str | None
    ranks_sha256: str | None

    @property
    def ndcg(self) -> Interval | None:
        return intervals(self.metrics).get(NDCG)

    @property
    def dataset_label(self) -> str:
        return f"{self.dataset} (synthetic, not MovieLens)" if self.synthetic else self.dataset

    @property
    def measured(self) -> Measured:
        """As the gate wants it."""
        name = f"the champion (version {self.version})" if CHAMPION in self.aliases else f"version {self.version}"
        return Measured(name, self.dataset, self.fingerprint, self.metrics)


def read_bundle(folder: Path, role: str) -> dict[str, Any]:
    """`bundle.json` of a bundle with the given role. Raises BundleError where it is not one."""
    try:
        manifest = read_json(folder / _MANIFEST)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} is not a bundle: its {_MANIFEST} cannot be read ({error}).") from error
    missing = [key for key in _NEEDED if not isinstance(manifest, dict) or key not in manifest]
    if not missing:
        dataset = manifest["dataset"]
        missing = [f"dataset.{key}" for key in ("name", "synthetic", "fingerprint") if key not in dataset]
    if missing:
        raise BundleError(f"{folder / _MANIFEST} lacks {', '.join(missing)}. Build the bundle again.")
    if manifest["role"] != role:
        raise BundleError(f"{folder} is a bundle for {manifest['role']}; one for {role} is wanted here.")
    if not is_folder_name(manifest["bundle_id"]):
        raise BundleError(f"{folder / _MANIFEST}: bundle_id {manifest['bundle_id']!r} cannot name a folder.")
    return dict(manifest)


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


def version_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What `versions` must know without fetching the bundle, as tags of the model version."""
    dataset = manifest["dataset"]
    tags = {
        _TAG + "bundle_id": manifest["bundle_id"],
        _TAG + "dataset": dataset["name"],
        _TAG + "synthetic": json.dumps(bool(dataset["synthetic"])),
        _TAG + "fingerprint": dataset["fingerprint"],
        _TAG + "trained_through": str(manifest["trained_through"]),
        _TAG + "code_version": manifest["code_version"],
        METRICS_TAG: json.dumps(manifest["metrics"], sort_keys=True),
    }
    ranks_sha256 = manifest.get("files", {}).get(RANKS_FILE)
    return tags if ranks_sha256 is None else tags | {_TAG + "ranks_sha256": ranks_sha256}


def content_tags(bundle_sha256: str, evaluation_id: str | None, evaluation_sha256: str | None) -> dict[str, str]:
    tags = {_TAG + "bundle_sha256": bundle_sha256}
    if evaluation_id is not None and evaluation_sha256 is not None:
        tags |= {_TAG + "evaluation_id": evaluation_id, _TAG + "evaluation_sha256": evaluation_sha256}
    return tags


def gate_tag(result: GateResult) -> tuple[str, str]:
    return _TAG + "gate", json.dumps(result.as_dict())


def version_info(entity: Any, aliases: Mapping[str, int]) -> VersionInfo | None:
    """From MLflow's ModelVersion; None for a version that something else than `register` has put there."""
    tags = {key.removeprefix(_TAG): value for key, value in entity.tags.items() if key.startswith(_TAG)}
    if "bundle_sha256" not in tags:
        return None
    gate = json.loads(tags["gate"]) if "gate" in tags else None
    version = int(entity.version)
    return VersionInfo(
        version=version,
        aliases=tuple(sorted(alias for alias, at in aliases.items() if at == version)),
        created_utc=datetime.fromtimestamp(entity.creation_timestamp // 1000, UTC).isoformat(),
        run_id=entity.run_id,
        bundle_id=tags["bundle_id"],
        dataset=tags["dataset"],
        synthetic=json.loads(tags["synthetic"]),
        fingerprint=tags["fingerprint"],
        trained_through=int(tags["trained_through"]),
        code_version=tags["code_version"],
        metrics=json.loads(tags["metrics"]),
        gate=NOT_JUDGED if gate is None else "passed" if gate["passed"] else "refused",
        gate_reasons=tuple(c["sentence"] for c in gate["checks"] if c["decides"] and not c["passed"]) if gate else (),
        bundle_sha256=tags["bundle_sha256"],
        evaluation_id=tags.get("evaluation_id"),
        evaluation_sha256=tags.get("evaluation_sha256"),
        ranks_sha256=tags.get("ranks_sha256"),
    )


def flat_parameters(parameters: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters by dotted name. A long value keeps its start, its length and its SHA-256, so that two long
    values which differ stay different; the whole value is in `bundle.json`.

    >>> flat_parameters({"ranker": {"leaves": 31, "metric": "ndcg@10"}, "retrievers": ["ease"], "seed": None})
    {'ranker.leaves': '31', 'ranker.metric': 'ndcg@10', 'retrievers': '["ease"]', 'seed': 'null'}
    """
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_parameters(value, f"{prefix}{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(text) > _LONGEST_PARAMETER:
            end = f"... ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
            text = text[: _LONGEST_PARAMETER - len(end)] + end
        flat[mlflow_name(prefix + name)] = text
    return flat


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every number by its MLflow name; the mean takes the metric's own name.

    >>> flat_metrics({"ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3}, "latency_p99_ms": 4})
    {'ndcg_at_10': 0.2, 'ndcg_at_10.low': 0.1, 'ndcg_at_10.high': 0.3, 'latency_p99_ms': 4.0}
    """
    flat: dict[str, float] = {}
    for name, value in intervals(metrics).items():
        flat[mlflow_name(name)] = value.mean
        for end, number in (("low", value.low), ("high", value.high)):
            if number is not None:
                flat[f"{mlflow_name(name)}.{end}"] = number
    return flat


def mlflow_name(name: str) -> str:
    """MLflow refuses `@` and other signs in names; each is replaced so that two names never become one.

    >>> mlflow_name("recall@500"), mlflow_name("a%")
    ('recall_at_500', 'a_x25_')
    """
    return re.sub(r"[^\w\-. :/]", lambda sign: f"_x{ord(sign[0]):x}_", name.replace("@", "_at_"))
