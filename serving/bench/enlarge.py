"""A bundle blown up to a larger catalogue: the trained one plus items that resemble its own.

Stage: serving (benchmark). In: a saved bundle, the number of items wanted. Out: a bundle's folder, whole, which the
service loads like any other; the rows that its new items need among the item statistics. Absent: quality. The new
items exist to be searched, scored and sorted, and what is recommended from among them means nothing.

A new item takes after a real one: its genres, year and title words, its vectors plus noise, its popularity times a
factor. Half the neighbours in the sparse tables move to a copy of the same item, so that a history of real items
leads to new ones. EASE keeps its head, which is bounded by design.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_ID, ITEM_KNN, POPULARITY, TWO_TOWER
from recsys.errors import ConfigError
from recsys.features.catalogue import Catalogue
from recsys.retrieval.ials import Ials
from recsys.retrieval.index import INDEX_FILES, VectorIndex

NOISE = 0.5  # of a column's standard deviation
SEED = 7


@dataclass(frozen=True)
class Growth:
    """like (M,): the real row that each new item takes after; `n` real items come first."""

    n: int
    like: IntArray
    ids: IntArray

    @classmethod
    def to(cls, catalogue: Catalogue, size: int) -> "Growth":
        """Raises ConfigError where the catalogue is as large already."""
        n = len(catalogue)
        if size <= n:
            raise ConfigError(f"the catalogue holds {n} items already, {size} are no more")
        like = np.random.default_rng(SEED).integers(0, n, size - n)
        first = int(catalogue.item_ids[-1]) + 1
        return cls(n, like, np.arange(first, first + len(like), dtype=np.int64))

    @property
    def all_rows(self) -> IntArray:
        """(N + M,) the real row behind each item."""
        return np.concatenate([np.arange(self.n), self.like])


def grown_vectors(vectors: FloatArray, like: IntArray, seed: int = SEED) -> FloatArray:
    """(N + M, D): the vectors, and M like them with noise."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(like), vectors.shape[1]), dtype=np.float32)
    more = vectors[like] + noise * (NOISE * vectors.std(axis=0, dtype=np.float32))
    return np.ascontiguousarray(np.concatenate([vectors, more.astype(np.float32)]))


def grown_bundle(folder: Path, to: Path, size: int) -> Growth:
    """Write the bundle in `folder` at `to` with `size` items. Its id is the name of `to`."""
    catalogue = Catalogue.load(folder)
    growth = Growth.to(catalogue, size)
    shutil.copytree(folder, to)
    _grown_catalogue(catalogue, growth).save(to)
    retrievers = to / "retrievers"
    if (retrievers / TWO_TOWER).is_dir():
        _grow_tower(retrievers / TWO_TOWER, growth)
    for name in (ITEM_KNN, COVISITATION):
        if (retrievers / name).is_dir():
            _grow_table(retrievers / name / f"{name}.safetensors", growth)
    _grow_arrays(retrievers, growth)
    stored = read_json(folder / "bundle.json")
    files = {
        path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(to.rglob("*"))
        if path.is_file() and path != to / "bundle.json"
    }
    write_json(to / "bundle.json", {**stored, "bundle_id": to.name, "files": files})
    return growth


def grown_statistics(path: Path, catalogue: Catalogue, growth: Growth) -> None:
    """Give each new item the last row of the one that it takes after, in the item statistics at `path`."""
    table = pd.read_parquet(path)
    last = table.sort_values("snapshot_day", kind="stable").drop_duplicates(ITEM_ID, keep="last").set_index(ITEM_ID)
    models = catalogue.item_ids[growth.like]
    rated = np.isin(models, last.index.to_numpy())
    more = last.loc[models[rated]].reset_index()
    more[ITEM_ID] = growth.ids[rated]
    grown = pd.concat([table, more[table.columns]], ignore_index=True).astype(table.dtypes.to_dict())
    grown.to_parquet(path, index=False)


def _grown_catalogue(catalogue: Catalogue, growth: Growth) -> Catalogue:
    rows = growth.all_rows
    copies = tuple(f"{catalogue.titles[row]} (copy {i})" for i, row in enumerate(growth.like.tolist(), start=1))
    return Catalogue(
        item_ids=np.concatenate([catalogue.item_ids, growth.ids]),
        titles=catalogue.titles + copies,
        years=catalogue.years[rows],
        genres=catalogue.genres[rows],
        genre_names=catalogue.genre_names,
        words=catalogue.words[rows],
        vocabulary=catalogue.vocabulary,
        profiles=catalogue.profiles,
    )


def _grow_tower(folder: Path, growth: Growth) -> None:
    """An item's vector is its id embedding plus its content; the content is inherited, so both get the same noise."""
    vectors = load_file(folder / "item_vectors.safetensors")["item_vectors"]
    grown = grown_vectors(vectors, growth.like)
    towers = load_file(folder / "towers.safetensors")
    ids = towers["items.ids.weight"]
    moved = grown[growth.n :] - vectors[growth.like]
    towers["items.ids.weight"] = np.concatenate([ids, (ids[growth.like] + moved).astype(ids.dtype)])
    save_file(towers, folder / "towers.safetensors")
    save_file({"item_vectors": grown}, folder / "item_vectors.safetensors")
    shape = read_json(folder / "towers.json")
    write_json(folder / "towers.json", {**shape, "n_items": len(grown)})
    _without_index(folder)
    VectorIndex.build(grown).save(folder)


def _without_index(folder: Path) -> None:
    for old in folder.glob(INDEX_FILES):
        old.unlink()


def _grow_table(path: Path, growth: Growth) -> None:
    """Rows of new items are those of their models; half of all neighbours move to a copy, where there is one."""
    stored = load_file(path)
    indptr, indices, data = stored["indptr"], stored["indices"], stored["data"]
    rows = growth.all_rows
    lengths = np.diff(indptr)[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    take = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + np.repeat(indptr[rows], lengths)
    columns, values = indices[take].astype(np.int64), data[take]
    by_model = np.argsort(growth.like, kind="stable")
    first = np.searchsorted(growth.like[by_model], np.arange(growth.n + 1))
    copies = np.diff(first)[columns]
    rng = np.random.default_rng(SEED)
    pick = first[columns] + (rng.random(len(columns)) * copies).astype(np.int64)
    moved = (rng.random(len(columns)) < 0.5) & (copies > 0)
    columns[moved] = growth.n + by_model[pick[moved]]
    order = np.lexsort((columns, np.repeat(np.arange(len(rows)), lengths)))
    more = {
        "indptr": starts.astype(indptr.dtype),
        "indices": columns[order].astype(indices.dtype),
        "data": values[order],
    }
    save_file({**stored, **more}, path)


def _grow_arrays(retrievers: Path, growth: Growth) -> None:
    rng = np.random.default_rng(SEED)
    if (path := retrievers / IALS / f"{IALS}.safetensors").exists():
        stored = load_file(path)
        grown = Ials.of_factors(grown_vectors(stored["factors"], growth.like), *stored["settings"].tolist())
        _without_index(path.parent)
        grown.save(path.parent)
    if (path := retrievers / POPULARITY / f"{POPULARITY}.safetensors").exists():
        stored = load_file(path)
        scores = stored["scores"]
        more = scores[growth.like] * rng.uniform(0.1, 1.0, len(growth.like)).astype(scores.dtype)
        save_file({**stored, "scores": np.concatenate([scores, more])}, path)
    if (path := retrievers / EASE / f"{EASE}.safetensors").exists():
        stored = load_file(path)
        save_file({**stored, "n_items": np.array([growth.n + len(growth.like)], dtype=np.int64)}, path)


def sibling(folder: Path, to: Path) -> Path:
    """A copy of a bundle under another name, which a registry takes for another version; `to`."""
    shutil.copytree(folder, to)
    stored = json.loads((to / "bundle.json").read_text(encoding="utf-8"))
    write_json(to / "bundle.json", {**stored, "bundle_id": to.name})
    return to
