"""The answer in process, the bare library calls beside it, and larger catalogues, on the planted bundle."""

import numpy as np
import pytest
import scipy.sparse as sp

from recsys.bundle import Bundle
from recsys.features.state import Event, UserState, fold
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from serving.benchmark import device, in_process
from serving.benchmark.bare import BareLibraries, load_tower
from serving.benchmark.enlarge import enlarged
from serving.benchmark.in_process import Model, measure_stages
from tests.planted import N_ITEMS, planted_bundle, planted_split, planted_timeline

USER_IDS = [101, 103, 105]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return planted_bundle(tmp_path_factory.mktemp("bundles") / "planted-1")


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Model:
    """Users of two events; who is not among USER_IDS is unknown to the store."""
    end = planted_split().end

    def read(user_id: int) -> UserState | None:
        events = [Event(5 + 3 * (user_id % 7), 4.0, end - 900), Event(5 + 3 * (user_id % 11), 3.5, end - 90)]
        return fold(UserState(user_id), events) if user_id in USER_IDS else None

    stats = planted_timeline().as_of(planted_timeline().last_day)
    return Model(bundle.folder, bundle.recommender, stats, read, end)


def test_stages_and_bare_calls_of_the_same_users(model: Model) -> None:
    found = in_process.measure(model, [*USER_IDS, 7], n=8, warm_up=2)
    assert list(found.stages) == ["state", "retrieval", "features", "ranking", "ordering", "total"]
    assert all(stage.n == 8 for stage in found.stages.values())
    names = ["feast", "tower", "index", "ease", "item_knn", "covisitation", "ials", "lightgbm", "orjson"]
    assert sorted(found.bare_ms) == sorted(names)
    assert found.bare_sum_ms == pytest.approx(sum(found.bare_ms.values()))
    assert found.stages["total"].p50_ms > sum(found.stages[s].p50_ms for s in ("retrieval", "ranking")) / 2
    assert found.overhead_cpu > 0


def test_the_bare_calls_compute_what_the_product_computes(model: Model) -> None:
    """Else the overhead would compare with other work."""
    states = model.states(USER_IDS[0])
    found = model.recommend(states)
    assert found.features is not None
    calls = BareLibraries(model.folder, model.recommender).calls(int, states, found.features[0], {})
    for retriever in model.recommender.retrievers:
        if isinstance(retriever, TwoTowerRetriever):
            np.testing.assert_allclose(calls["tower"](), retriever.encode(states), atol=1e-4)
    candidates = found.candidates
    for name in ("ease", "ials", "item_knn", "covisitation"):  # all but EASE's unrated last items have a score
        column = candidates.retriever_names.index(name)
        found_by = candidates.retriever_ranks[0, :, column] > 0
        product = calls[name]()
        scores = (product.toarray() if isinstance(product, sp.csr_matrix) else np.asarray(product)).ravel()
        expected = candidates.retriever_scores[0, found_by, column]
        assert len(expected) > 5
        np.testing.assert_allclose(scores[candidates.item_idx[0, found_by]], expected, rtol=1e-3, err_msg=name)


def test_an_enlarged_catalogue_answers_with_old_items_and_new(model: Model) -> None:
    larger = enlarged(model, 25_000)
    assert len(larger.recommender.catalogue) == len(larger.stats) == 25_000
    assert larger.recommender.catalogue.item_ids[:N_ITEMS].tolist() == model.recommender.catalogue.item_ids.tolist()
    assert {retriever.n_items for retriever in larger.recommender.retrievers} == {25_000}
    answered = larger.recommend(larger.states(*USER_IDS)).item_ids
    assert (answered > 0).all()
    assert (answered > model.recommender.catalogue.item_ids[-1]).any(), "some are new"
    stages, _ = measure_stages(larger, USER_IDS, {}, n=3, warm_up=1)
    assert stages["total"].n == 3


def test_a_device_finds_what_the_exact_index_finds(model: Model) -> None:
    found = device.measure(model, USER_IDS, "cpu", sizes=(100,), batches=(1, 4))
    assert found is not None
    assert [(b.items, b.users) for b in found.batches] == [(N_ITEMS, 1), (N_ITEMS, 4), (100, 1), (100, 4)]
    tower, states = load_tower(model.folder, model.recommender), model.states(*USER_IDS)
    retriever = next(r for r in model.recommender.retrievers if isinstance(r, TwoTowerRetriever))
    best = device.best(tower, states, tower.item_vectors())
    exact, _ = retriever.index.search(retriever.encode(states), best.shape[1])
    assert (best[:, :10] == exact[:, :10]).all()
