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
from recsys.columns import EASE, IALS, POPULARITY, TWO_TOWER
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
        shutil.copytree(model.folder / "retrievers", retrievers, ignore=shutil.ignore_patterns(INDEX_FILES))
        for folder in retrievers.iterdir():
            _enlarge(folder, rows)
        loaded = load_retrievers(retrievers, grown)
    larger = Recommender(grown, loaded, recommender.ranker, recommender.settings, recommender.probabilities)
    return replace(model, recommender=larger, stats=replace(stats, **by_item))


def _enlarge(folder: Path, rows: IntArray) -> None:
    """The stored retriever `folder`, of the real items `rows`. Of the two-tower model an item's own part moves and its
    content part is inherited."""
    name, size = folder.name, len(rows)
    path = folder / ("towers.safetensors" if name == TWO_TOWER else f"{name}.safetensors")
    stored = load_file(path)
    if name == TWO_TOWER:
        vectors = load_file(folder / "item_vectors.safetensors")["item_vectors"]
        larger = enlarged_vectors(vectors, size)
        stored["items.ids.weight"] = stored["items.ids.weight"][rows] + (larger - vectors[rows])
        save_file({"item_vectors": larger}, folder / "item_vectors.safetensors")
        write_json(folder / "towers.json", {**read_json(folder / "towers.json"), "n_items": size})
        VectorIndex.build(larger).save(folder)
    elif name == IALS:
        Ials.of_factors(enlarged_vectors(stored["factors"], size), *stored["settings"].tolist()).save(folder)
        return
    elif name == POPULARITY:
        stored["scores"] = stored["scores"][rows]
    elif name == EASE:
        stored["n_items"] = np.array([size], dtype=np.int64)
    else:
        n = len(stored["indptr"]) - 1
        table = sp.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=(n, n))[rows]
        stored |= {part: getattr(table, part).astype(stored[part].dtype) for part in ("indptr", "indices", "data")}
    save_file(stored, path)
