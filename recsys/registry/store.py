"""Versions of a data set's model: register, find, fetch, promote, roll back.

What lies where: one MLflow run a training, with the artifacts `bundle/`, `evaluation_bundle/` and `reports/`; one
model version pointing at `bundle/`; the earlier champions, oldest first, and the traffic, as tags of the registered
model.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pandas as pd

from recsys.atomic_io import locked_folder, replacing_folder
from recsys.columns import CHALLENGER, CHAMPION
from recsys.errors import BundleError, ConfigError, RegistryError
from recsys.evaluation.bootstrap import PairedDifference
from recsys.evaluation.ranks import RANKS_FILE, read_ranks
from recsys.promotion_gate import NDCG, GateResult, intervals, judge
from recsys.registry import records
from recsys.registry.backend import Backend
from recsys.registry.records import Comparison, Step, VersionInfo, fingerprint_folder, pair
from recsys.registry.traffic import Traffic

_HISTORY: Final = "recsys.champion_history"
_TRAFFIC: Final = "recsys.traffic"
_LONGEST_HISTORY: Final = 200  # a registered model's tag holds 5000 characters
_BUNDLE: Final = "bundle"
_EVALUATION: Final = "evaluation_bundle"


class Registry:
    """The versions of one registered model. Nothing is opened, imported or created before the first call.

    tracking_uri   an MLflow server (http, https) or database; None keeps SQLite in `folder`
    folder         where the default database and its artifacts live, and the lock that writers share
    model_name     `model_name_for(dataset)`; the experiment has the same name

    Every method raises RegistryError where the store cannot be reached or does not hold what was asked for.
    """

    def __init__(self, tracking_uri: str | None, folder: Path, model_name: str) -> None:
        self.model_name = model_name
        self._backend = Backend(tracking_uri, folder)

    def register(
        self,
        bundle_dir: Path,
        *,
        evaluation_dir: Path | None = None,
        report_files: Sequence[Path] = (),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> VersionInfo:
        """Store a production bundle, its sibling and its reports, and call the new version `challenger`.

        A failure leaves a run marked FAILED and no version. Raises BundleError for a folder that is another bundle.
        """
        facts = records.facts_of(bundle_dir, "production")
        sibling = records.facts_of(evaluation_dir, "evaluation") if evaluation_dir else None
        if sibling is not None and sibling.bundle_id != facts.sibling_id:
            raise BundleError(
                f"{evaluation_dir} holds {sibling.bundle_id}, but the sibling of {facts.bundle_id} is"
                f" {facts.sibling_id}: their metrics would be mixed up. Register a pair of one training."
            )
        all_tags = {**records.version_tags(bundle_dir, facts), **tags}
        of_run = {name: value for name, value in all_tags.items() if name != records.METRICS_TAG}  # logged as numbers
        parameters, metrics = records.flat_parameters(facts.parameters), records.flat_metrics(facts.metrics)
        with self._backend.writing("register a bundle") as client:
            experiment_id = self._backend.experiment_id(self.model_name, self._artifacts)
            run = client.create_run(experiment_id, run_name=facts.bundle_id, tags=of_run)
            run_id = run.info.run_id
            try:
                self._backend.log(run_id, parameters, metrics)
                client.log_artifacts(run_id, str(bundle_dir), _BUNDLE)
                if evaluation_dir:
                    client.log_artifacts(run_id, str(evaluation_dir), _EVALUATION)
                for path in report_files:
                    client.log_artifact(run_id, str(path), "reports")
                source = f"{run.info.artifact_uri}/{_BUNDLE}"
                version = self._backend.create_version(self.model_name, source, run_id, all_tags)
            except BaseException:
                with suppress(Exception):  # the first error is the one to report
                    client.set_terminated(run_id, "FAILED")
                raise
            client.set_terminated(run_id, "FINISHED")
            client.set_registered_model_alias(self.model_name, CHALLENGER, version)
        return self.resolve(version)

    def judge(
        self, ref: str | int = CHALLENGER, *, latency_budget_ms: float, paired: PairedDifference | None = None
    ) -> GateResult:
        """Hold a version against the champion, and record the result with the version. Promotes nothing.

        The champion itself is judged as a first model. Without `paired` the gate gets the difference that both
        versions' ranks give (`records.pair`), if they were measured on the same events.
        """
        challenger = self.resolve(ref)
        champion = next((v for v in self.versions() if CHAMPION in v.aliases and v.version != challenger.version), None)
        result = judge(
            challenger.measured,
            champion.measured if champion else None,
            latency_budget_ms=latency_budget_ms,
            paired=paired or (pair(champion, challenger, self.ranks)[0].get(NDCG) if champion else None),
        )
        with self._backend.writing("record the gate") as client:
            gate = json.dumps(result.as_dict())
            client.set_model_version_tag(self.model_name, str(challenger.version), records.GATE_TAG, gate)
        return result

    def record_step(self, version: int, step: Step) -> VersionInfo:
        """Keep with a version what retraining did with it; the version as it is then."""
        with self._backend.writing("record a step") as client:
            for name, value in step.tag.items():
                client.set_model_version_tag(self.model_name, str(version), name, value)
        return self.resolve(version)

    def promote(self, ref: str | int) -> VersionInfo:
        """Make a version the champion, and remember the one before. Does not ask the gate: a person may overrule it.

        `challenger` is taken from the version, so that an experiment never plays the champion against itself.
        Promoting the champion changes nothing.
        """
        version = self.resolve(ref).version
        with self._backend.writing("promote a version") as client:
            model = self._backend.model(self.model_name)
            aliases = _aliases(model)
            current = aliases.get(CHAMPION)
            if current != version:
                if current is not None:  # first: a crash in between leaves an entry that `rollback` skips
                    self._write_history(client, [*_history(model), current])
                client.set_registered_model_alias(self.model_name, CHAMPION, str(version))
            if aliases.get(CHALLENGER) == version:
                client.delete_registered_model_alias(self.model_name, CHALLENGER)
        return self.resolve(version)

    def rollback(self) -> VersionInfo:
        """Make the previous champion champion again.

        Each call goes one champion further back: two calls after 1, 2, 3 lead to 1. Versions deleted meanwhile are
        skipped. Raises RegistryError where no earlier champion is left, and changes nothing then.
        """
        with self._backend.writing("roll back") as client:
            model = self._backend.model(self.model_name)
            current = _aliases(model).get(CHAMPION)
            if current is None:
                raise RegistryError(f"{self.model_name} has no champion to roll back from. Promote a version first.")
            present = {v.version for v in self.versions()}
            earlier = [v for v in _history(model) if v in present]
            while earlier and earlier[-1] == current:
                earlier.pop()
            if not earlier:
                raise RegistryError(
                    f"Version {current} of {self.model_name} has no earlier champion to roll back to. Promote the"
                    " version that you want by its number; `recsys train --seed 8` makes another."
                )
            target = earlier.pop()
            client.set_registered_model_alias(self.model_name, CHAMPION, str(target))
            self._write_history(client, earlier)
        return self.resolve(target)

    def traffic(self) -> Traffic:
        """What gets requests beside the champion; nothing where none was set."""
        with self._backend.speaking("read the traffic"):
            model = self._backend.model(self.model_name)
        try:
            return Traffic.from_json(model.tags[_TRAFFIC]) if model and _TRAFFIC in model.tags else Traffic()
        except ConfigError as error:
            raise RegistryError(f"{self.model_name}: {error}. Set it again.") from error

    def set_traffic(self, traffic: Traffic) -> None:
        """In place of the one before; services follow within seconds. Every version that it names must be there."""
        for version in traffic.versions:
            self.resolve(version)
        with self._backend.writing("set the traffic") as client:
            client.set_registered_model_tag(self.model_name, _TRAFFIC, traffic.to_json())

    def versions(self) -> list[VersionInfo]:
        """All versions, newest first; empty where nothing was registered yet."""
        if not self._backend.exists:  # reading must not create a database
            return []
        with self._backend.speaking("list the versions"):
            if (model := self._backend.model(self.model_name)) is None:
                return []
            entities = self._backend.client.search_model_versions(f"name = '{self.model_name}'")
        infos = (records.version_info(entity, _aliases(model)) for entity in entities)
        return sorted((i for i in infos if i is not None), key=lambda i: -i.version)

    def resolve(self, ref: str | int) -> VersionInfo:
        """The version with a number (3, "3", "v3") or an alias. An alias is looked up at once: services poll it."""
        if isinstance(ref, str) and (info := self._by_alias(ref)) is not None:
            return info
        versions = self.versions()
        if not versions:
            raise RegistryError(
                f"The registry at {self._backend.shown} holds no version of {self.model_name} yet."
                " Run `recsys train` first."
            )
        text = str(ref)
        number = text[1:] if text[:1] in ("v", "V") else text
        for info in versions:
            if text in info.aliases or (number.isdecimal() and int(number) == info.version):
                return info
        have = ", ".join(" ".join([str(i.version), *(f"({alias})" for alias in i.aliases)]) for i in reversed(versions))
        named = f"no version {number}" if number.isdecimal() else f"no version called {text!r}"
        raise RegistryError(
            f"{self.model_name} has {named}. It has {have}. Name one of them; `recsys train --seed 8` makes another."
        )

    def _by_alias(self, alias: str) -> VersionInfo | None:
        if not self._backend.exists:
            return None
        with self._backend.speaking("look up a version"):
            if (model := self._backend.model(self.model_name)) is None or alias not in _aliases(model):
                return None
            entity = self._backend.client.get_model_version(self.model_name, str(_aliases(model)[alias]))
        return records.version_info(entity, _aliases(model))

    def download(self, ref: str | int | VersionInfo, to: Path) -> Path:
        """A verified copy of a version's bundle at `to/<bundle_id>`.

        A copy that is there and whole is used as it is; one that differs from what was registered is replaced.
        Raises RegistryError where the stored bundle itself is not what was registered.
        """
        info = ref if isinstance(ref, VersionInfo) else self.resolve(ref)
        if not records.is_folder_name(info.bundle_id):
            raise RegistryError(f"{self._named(info)} names its bundle {info.bundle_id!r}: refused.")
        place = to / info.bundle_id
        if fingerprint_folder(place) == info.bundle_sha256:
            return place
        with self._backend.speaking(f"fetch version {info.version}"):
            to.mkdir(parents=True, exist_ok=True)
            with locked_folder(to, fcntl.LOCK_EX), tempfile.TemporaryDirectory() as scratch:
                if fingerprint_folder(place) == info.bundle_sha256:
                    return place  # whoever came first is reading it by now
                stored = self._stored(info, _BUNDLE, scratch)
                if fingerprint_folder(stored) != info.bundle_sha256:
                    raise RegistryError(
                        f"The stored bundle of version {info.version} of {self.model_name} was altered or is incomplete"
                        f" ({stored}). Roll back, or register it again."
                    )
                with replacing_folder(place) as beside:
                    shutil.copytree(stored, beside, dirs_exist_ok=True)
        return place

    def ranks(self, ref: str | int) -> pd.DataFrame:
        """The rank of every test event that a version's metrics rest on (`recsys.evaluation.ranks`), verified. Raises
        RegistryError where the version was registered without it."""
        info = self.resolve(ref)
        if info.ranks_sha256 is None:
            raise RegistryError(
                f"{self._named(info)} was registered without the ranks of its test events. Train it again with"
                " `recsys train --force`."
            )
        with self._backend.speaking(f"fetch the ranks of version {info.version}"), tempfile.TemporaryDirectory() as at:
            path = self._stored(info, f"{_BUNDLE}/{RANKS_FILE}", at)
            if hashlib.sha256(path.read_bytes()).hexdigest() != info.ranks_sha256:
                raise RegistryError(
                    f"The stored ranks of version {info.version} of {self.model_name} were altered ({path})."
                )
            return read_ranks(path)

    def compare(self, a: str | int, b: str | int) -> Comparison:
        """What differs between two versions, b against a; event by event where both kept their ranks."""
        first, second = self.resolve(a), self.resolve(b)
        with self._backend.speaking("compare two versions"):
            runs = [self._backend.client.get_run(v.run_id) for v in (first, second)]
        of_a, of_b = (run.data.params for run in runs)
        parameters = {name: (of_a.get(name), of_b.get(name)) for name in sorted({*of_a, *of_b})}
        ours, theirs = intervals(first.metrics), intervals(second.metrics)
        return Comparison(
            first,
            second,
            {name: (ours.get(name), theirs.get(name)) for name in sorted({*ours, *theirs})},
            {name: both for name, both in parameters.items() if both[0] != both[1]},
            *pair(first, second, self.ranks),
        )

    def _named(self, info: VersionInfo) -> str:
        return f"Version {info.version} of {self.model_name}"

    @property
    def _artifacts(self) -> Path:
        """Where a store without a server keeps the runs' artifacts."""
        return self._backend.folder / "artifacts" / self.model_name

    def _stored(self, info: VersionInfo, part: str, scratch: str) -> Path:
        """A file or folder of a version's run: where it lies, or below `scratch` where a server had to send it."""
        path = self._artifacts / info.run_id / "artifacts" / part  # also where a home was moved or mounted
        return path if path.exists() else Path(self._backend.client.download_artifacts(info.run_id, part, scratch))

    def _write_history(self, client: Any, versions: Sequence[int]) -> None:
        kept = list(versions)[-_LONGEST_HISTORY:]
        client.set_registered_model_tag(self.model_name, _HISTORY, json.dumps(kept))


def _aliases(model: Any) -> dict[str, int]:
    """Alias to version number; MLflow gives text from a server and numbers from a database."""
    return {alias: int(version) for alias, version in model.aliases.items()} if model else {}


def _history(model: Any) -> list[int]:
    """The earlier champions, oldest first."""
    return [int(version) for version in json.loads(model.tags.get(_HISTORY, "[]"))]
