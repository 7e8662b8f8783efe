"""The table of retrievers: every name can be fitted with its default settings, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.config import config_for
from recsys.bundle import save_retrievers
from recsys.columns import ITEM_ID, RETRIEVERS, TIMESTAMP, TWO_TOWER, USER_ID
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.retrieval.ease import Ease
from recsys.retrieval.retrievers import KnownEvents, fit_retriever, load_retrievers
from tests.planted import (
    N_ITEMS,
    planted_catalogue,
    planted_histories,
    planted_retrievers,
    planted_split,
    planted_tables,
)


def known(cutoff: int) -> KnownEvents:
    return KnownEvents.through(planted_histories(), N_ITEMS, cutoff)


@pytest.mark.parametrize("cutoff", [0, planted_split().t1, planted_split().end])
def test_known_events_are_those_up_to_the_cutoff_by_user_time_and_item(cutoff: int) -> None:
    h, made = planted_histories(), known(cutoff)
    got = zip(h.user_ids[made.user_idx], made.timestamps, planted_catalogue().to_ids(made.item_idx), strict=True)
    events = planted_tables().events
    columns = [events[events[TIMESTAMP] <= cutoff][name].tolist() for name in (USER_ID, TIMESTAMP, ITEM_ID)]
    assert [tuple(map(int, row)) for row in got] == sorted(zip(*columns, strict=True))
    assert (made.cutoff, made.n_items) == (cutoff, N_ITEMS)


@pytest.mark.parametrize("name", [name for name in RETRIEVERS if name != TWO_TOWER])
def test_each_is_fitted_by_name_and_comes_back_as_itself(name: str, tmp_path: Path) -> None:
    made = fit_retriever(name, known(planted_split().end), config_for(planted_tables().events).retrievers[name])
    assert made.name == name
    save_retrievers([made], tmp_path)
    (loaded,) = load_retrievers(tmp_path, planted_catalogue())
    assert type(loaded) is type(made)
    assert loaded.name == name
    states = planted_histories().states_at(planted_histories().user_ids, planted_split().end)
    for first, second in zip(made.answer(states).top(N_ITEMS), loaded.answer(states).top(N_ITEMS), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_folder_without_retrievers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no retriever; train again with `recsys train`"):
        load_retrievers(tmp_path, planted_catalogue())


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_retriever_of_another_catalogue_is_refused(name: str, tmp_path: Path) -> None:
    """The loops of an answer check no row number: they would write beside their arrays."""
    (retriever,) = [retriever for retriever in planted_retrievers() if retriever.name == name]
    assert retriever.n_items == N_ITEMS
    save_retrievers([retriever], tmp_path)
    items = planted_tables().items.iloc[:-1]
    smaller = Catalogue.from_tables(items, planted_tables().users)
    with pytest.raises(BundleError, match=f"{N_ITEMS} items"):
        load_retrievers(tmp_path, smaller)


def test_weights_of_ease_that_do_not_fit_its_items_are_refused(tmp_path: Path) -> None:
    head, weights = np.array([0, 4]), np.zeros((2, 2), dtype=np.float32)
    for wrong in (Ease(head[:1], weights, 5, 1.0), Ease(head, weights, 4, 1.0)):
        wrong.save(tmp_path)
        with pytest.raises(BundleError, match="EASE are not those of its items"):
            Ease.load(tmp_path)
