"""A recommender blown up to a larger catalogue: the trained one plus items that resemble its own.

A new item takes after a real one: all that is known of it is the same, but for noise on its vectors. EASE keeps its
head, which is bounded by design. How long an answer takes means something; what it recommends does not.
"""

import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, TWO_TOWER
from recsys.recommender import Recommender
from recsys.retrieval.ials import Ials
from recsys.retrieval.index import INDEX_FILES, VectorIndex
from recsys.retrieval.retrievers import load_retrievers
from serving.benchmark.in_process import Model

NOISE, SEED = 0.5, 7  # of a column's standard deviation


def enlarged_rows(n: int, size: int) -> IntArray:
    """(size,) the real row behind each item: the `n` real ones, then one for each new item."""
    return np.concatenate([np.arange(n), np.random.default_rng(SEED).integers(0, n, max(size - n, 0))])


def enlarged_vectors(vectors: FloatArray, size: int) -> FloatArray:
    """(size, D): the vectors, and more like them with noise."""
    grown = vectors[enlarged_rows(len(vectors), size)].astype(np.float32)
    noise = np.random.default_rng(SEED).standard_normal((size - len(vectors), vectors.shape[1]), dtype=np.float32)
    grown[len(vectors) :] += noise * (NOISE * vectors.std(axis=0, dtype=np.float32))
    return grown


def enlarged(model: Model, size: int) -> Model:
    """With `size` items."""
    recommender, stats, catalogue = model.recommender, model.stats, model.recommender.catalogue
    rows = enlarged_rows(len(catalogue), size)
    grown = replace(
        catalogue,
        item_ids=np.concatenate([catalogue.item_ids, catalogue.item_ids[-1] + np.arange(1, size - len(catalogue) + 1)]),
        titles=tuple(catalogue.titles[row] for row in rows),
        years=catalogue.years[rows],
        genres=catalogue.genres[rows],
        words=catalogue.words[rows],
    )
    by_item = {f.name: getattr(stats, f.name)[rows] for f in fields(stats) if f.name not in ("day", "through_seq")}
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as scratch:
        retrievers = Path(scratch) / "retrievers"
        shutil.copytree(model.folder / "retrievers", retrievers)
        _enlarge_vectors(retrievers, size)
        _enlarge_tables(retrievers, rows)
        loaded = load_retrievers(retrievers, grown)
    larger = Recommender(grown, loaded, recommender.ranker, recommender.settings, recommender.probabilities)
    return replace(model, recommender=larger, stats=replace(stats, **by_item))


def _enlarge_vectors(retrievers: Path, size: int) -> None:
    """Of the two-tower model, where an item's own part moves and its content part is inherited; and of iALS."""
    for old in retrievers.glob(f"*/{INDEX_FILES}"):
        old.unlink()
    if (folder := retrievers / TWO_TOWER).is_dir():
        vectors, towers = load_file(folder / "item_vectors.safetensors")["item_vectors"], folder / "towers.safetensors"
        stored, rows, grown = load_file(towers), enlarged_rows(len(vectors), size), enlarged_vectors(vectors, size)
        stored["items.ids.weight"] = stored["items.ids.weight"][rows] + (grown - vectors[rows])
        save_file(stored, towers)
        save_file({"item_vectors": grown}, folder / "item_vectors.safetensors")
        write_json(folder / "towers.json", {**read_json(folder / "towers.json"), "n_items": size})
        VectorIndex.build(grown).save(folder)
    if (path := retrievers / IALS / f"{IALS}.safetensors").exists():
        stored = load_file(path)
        Ials.of_factors(enlarged_vectors(stored["factors"], size), *stored["settings"].tolist()).save(path.parent)


def _enlarge_tables(retrievers: Path, rows: IntArray) -> None:
    for name in (ITEM_KNN, COVISITATION, POPULARITY, EASE):
        if not (path := retrievers / name / f"{name}.safetensors").exists():
            continue
        stored = load_file(path)
        if name == POPULARITY:
            stored["scores"] = stored["scores"][rows]
        elif name == EASE:
            stored["n_items"] = np.array([len(rows)], dtype=np.int64)
        else:
            n = len(stored["indptr"]) - 1
            table = sp.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=(n, n))[rows]
            stored |= {part: getattr(table, part).astype(stored[part].dtype) for part in ("indptr", "indices", "data")}
        save_file(stored, path)
