"""A bundle is saved, verified, loaded and refused whole."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from recsys.atomic_io import read_json, write_json
from recsys.bundle import BundleFacts, load_bundle, read_facts, save_bundle, try_bundle, verify_bundle, with_metrics
from recsys.errors import BundleError
from recsys.features.state import StateBatch
from recsys.recommender import RequestContext
from recsys.retrieval.index import VectorIndex
from tests.contracts.no_code import assert_no_pickle
from tests.planted import (
    DAY,
    RECOMMENDER,
    planted_bundle,
    planted_facts,
    planted_histories,
    planted_rankers,
    planted_recommender,
    planted_split,
    planted_timeline,
)

FILES = [
    "bundle.json",
    "calibration.json",
    "catalogue.json",
    "catalogue.parquet",
    "like.json",
    "logistic.json",
    "ranker.txt",
    "ranker_base.json",
    "recommender.json",
    "retrievers/covisitation/covisitation.safetensors",
    "retrievers/ease/ease.safetensors",
    "retrievers/ials/ials.safetensors",
    "retrievers/item_knn/item_knn.safetensors",
    "retrievers/popularity/popularity.safetensors",
    "retrievers/two_tower/index.exact.faiss",
    "retrievers/two_tower/item_vectors.safetensors",
    "retrievers/two_tower/towers.json",
    "retrievers/two_tower/towers.safetensors",
]


def request() -> tuple[StateBatch, RequestContext]:
    """All users and a stranger, on the day after T2."""
    now = planted_split().t2 + DAY
    states = planted_histories().states_at(np.append(planted_histories().user_ids, 5), now)
    return states, RequestContext(planted_timeline().as_of(now // DAY))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "planted-1"
    planted_bundle(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "planted-1"))


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_loaded_bundle_answers_identically(saved: Path) -> None:
    bundle = load_bundle(saved)
    before, after = (r.recommend(*request(), 25) for r in (planted_recommender(), bundle.recommender))
    for name in ("item_ids", "scores", "features", "watch_probability", "like_probability"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.candidates.retriever_scores, before.candidates.retriever_scores)
    rows = np.asarray(before.features)[0]
    np.testing.assert_array_equal(bundle.logistic.score(rows), planted_rankers()[1].score(rows))
    assert bundle.recommender.settings == RECOMMENDER
    assert bundle.facts == planted_facts()
    assert bundle.folder == saved


def test_the_files_are_known_and_none_can_run_code(saved: Path) -> None:
    assert names(saved) == FILES
    assert_no_pickle(saved)
    assert sorted(read_json(saved / "bundle.json")["files"]) == FILES[1:]


def save(folder: Path, facts: BundleFacts, **options: Any) -> None:
    recommender, (ranker, logistic) = planted_recommender(), planted_rankers()
    save_bundle(folder, facts, recommender.catalogue, recommender.retrievers, ranker, logistic, RECOMMENDER, **options)


def test_without_probabilities_it_gives_scores_alone(tmp_path: Path) -> None:
    save(tmp_path / "planted-1", planted_facts())
    assert names(tmp_path / "planted-1") == [name for name in FILES if name not in ("calibration.json", "like.json")]
    plain, full = (
        r.recommend(*request(), 5) for r in (load_bundle(tmp_path / "planted-1").recommender, planted_recommender())
    )
    np.testing.assert_array_equal(plain.scores, full.scores)
    assert np.isnan(plain.watch_probability).all()
    assert np.isnan(plain.like_probability).all()


def test_a_failure_while_saving_leaves_the_old_bundle(copy: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save(copy, replace(planted_facts("planted-2"), metrics={"ndcg": float("nan")}))
    assert load_bundle(copy).facts.bundle_id == "planted-1"
    assert [p.name for p in copy.parent.iterdir()] == ["planted-1"]


@pytest.mark.parametrize("name", FILES[1:])
def test_an_altered_or_missing_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    for _ in range(2):
        with pytest.raises(BundleError, match=f"not as it was saved: {name} missing, altered or added"):
            verify_bundle(copy)
        (copy / name).unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["evil.pkl", "retrievers/bundle.json", ".hidden"])
def test_an_added_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(BundleError, match=f"not as it was saved: {name} missing, altered or added"):
        load_bundle(copy)


def with_new_digests(folder: Path) -> None:
    stored = read_json(folder / "bundle.json")
    stored["files"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names(folder)[1:]}
    write_json(folder / "bundle.json", stored)


def text(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def tensors(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def edit(folder: Path) -> None:
        arrays = load_file(folder / "retrievers" / name)
        change(arrays)
        save_file(arrays, folder / "retrievers" / name)

    return edit


def other_index(folder: Path) -> None:
    vectors = load_file(folder / "retrievers/two_tower/item_vectors.safetensors")["item_vectors"]
    VectorIndex.build(np.ascontiguousarray(vectors[::-1])).save(folder / "retrievers/two_tower")


def ids_out_of_order(folder: Path) -> None:
    pd.read_parquet(folder / "catalogue.parquet").iloc[::-1].to_parquet(folder / "catalogue.parquet", index=False)


EDITED: dict[str, tuple[Callable[[Path], object], str]] = {
    "trees cut at a third": (text("ranker.txt", lambda t: t[: len(t) // 3]), "ranker.txt is damaged"),
    "a leaf of NaN": (text("ranker.txt", lambda t: re.sub("leaf_value=[^ ]*", "leaf_value=nan", t)), "not finite"),
    "vectors of NaN": (
        tensors("two_tower/item_vectors.safetensors", lambda a: a["item_vectors"].fill(np.nan)),
        "not finite",
    ),
    "a coefficient too large": (
        text("logistic.json", lambda t: t.replace('"intercept": ', '"intercept": 9e999')),
        "9e999",
    ),
    "the index of other vectors": (other_index, "is the index of other vectors"),
    "ids out of order": (ids_out_of_order, "item ids of the catalogue do not rise"),
    "other feature names": (text("ranker.txt", lambda t: t.replace("ease_rank", "ease_place")), "other features"),
    "a retriever of other items": (
        tensors("popularity/popularity.safetensors", lambda a: a.update(scores=a["scores"][1:])),
        "popularity knows 39 items, the catalogue 40",
    ),
    "a missing file": (lambda folder: (folder / "retrievers/ease/ease.safetensors").unlink(), "cannot be "),
    "an unknown setting": (text("recommender.json", lambda t: t.replace("fetch", "fetched")), "unexpected keyword"),
}


@pytest.mark.parametrize("kind", EDITED)
def test_an_edited_bundle_with_right_digests_is_refused_with_one_line(copy: Path, kind: str) -> None:
    """LightGBM ends the process that reads a file which was cut, so those are tried in one of their own."""
    edit, reason = EDITED[kind]
    edit(copy)
    with_new_digests(copy)
    with pytest.raises(BundleError) as refused:
        (try_bundle if "cut" in kind else load_bundle)(copy)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_good_bundle_passes_its_trial(saved: Path) -> None:
    try_bundle(saved)
    tried = subprocess.run([sys.executable, "-m", "recsys.bundle", saved / "gone"], capture_output=True, check=False)
    assert (tried.returncode, tried.stderr.count(b"\n")) == (2, 1)


def edited(change: Callable[[dict], dict]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    return lambda folder: write_json(folder / "bundle.json", change(read_json(folder / "bundle.json")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), r"holds no bundle \(bundle.json is missing\)"),
        (edited(lambda stored: {**stored, "format": 99}), "has format 99, this code reads 2; train again"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "cannot be read .* the bundle is broken"),
        (edited(lambda stored: {k: v for k, v in stored.items() if k != "role"}), "cannot be read .*'role'"),
        (edited(lambda stored: {**stored, "dataset": {"name": "x"}}), "cannot be read"),
        (edited(lambda stored: {k: v for k, v in stored.items() if k != "files"}), "not as it was saved"),
    ],
)
def test_a_bundle_that_cannot_be_read_says_why(copy: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copy)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_metrics_are_set_and_every_file_stays_valid(copy: Path) -> None:
    before = {name: (copy / name).read_bytes() for name in FILES[1:]}
    facts = with_metrics(copy, {"overall": {"ndcg@10": 0.25}})
    assert facts == replace(planted_facts(), metrics={"overall": {"ndcg@10": 0.25}}) == load_bundle(copy).facts
    assert {name: (copy / name).read_bytes() for name in FILES[1:]} == before
    assert with_metrics(copy, {"b": 1}).metrics == {"b": 1}, "set, not merged"
    (copy / "ranker.txt").write_text("tree\n")
    with_metrics(copy, {"ndcg@10": 1.0})  # what was altered is still noticed
    with pytest.raises(BundleError, match=r"not as it was saved: ranker\.txt"):
        load_bundle(copy)


def test_files_are_carried_under_digests(copy: Path, tmp_path: Path) -> None:
    """Added with the metrics, or when the bundle is saved; altered afterwards they are named like any other file."""
    carried = tmp_path / "ranks.parquet"
    carried.write_bytes(b"ranks")
    with pytest.raises(ValueError, match="JSON"):
        with_metrics(copy, {"ndcg@10": float("inf")}, [carried])
    assert names(copy) == FILES
    with_metrics(copy, {"ndcg@10": 0.25}, [carried])
    save(tmp_path / "planted-2", planted_facts(), files=[copy / carried.name])
    for folder in (copy, tmp_path / "planted-2"):
        verify_bundle(folder)
        assert (folder / carried.name).read_bytes() == b"ranks"
        (folder / carried.name).write_bytes(b"other ranks")
        with pytest.raises(BundleError, match=r"not as it was saved: ranks\.parquet missing, altered or added"):
            verify_bundle(folder)


def test_facts_are_read_without_loading_a_model(copy: Path) -> None:
    shutil.rmtree(copy / "retrievers")
    assert read_facts(copy) == planted_facts()
    assert read_facts(copy).dataset.label == "planted (synthetic, not MovieLens)"
