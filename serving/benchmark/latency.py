"""`recsys bench latency`: what is measured, in order, and the report that it makes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from recsys.atomic_io import read_json
from recsys.bundle import load_bundle
from recsys.columns import CHAMPION
from recsys.data.tables import DatasetInfo
from recsys.evaluation.about import PACKAGES, about, load_average, processor
from recsys.feature_store import FeatureStore
from recsys.features.item_stats import day_of
from recsys.registry import Registry, model_name_for
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace
from serving.benchmark import device, in_process
from serving.benchmark.enlarge import enlarged
from serving.benchmark.in_process import InProcess, Model, measure_stages
from serving.benchmark.load import Load, Percentiles, Plan, generator
from serving.benchmark.service import recommendation_path, running, sample_of_users
from serving.benchmark.sweep import LOST, Sweep, sweep

CLIENTS = (1, 4)
LARGER = (20_000, 62_000)  # items; the last is the size of ml-25m
OPEN_SHARE, TIMES_CALM = 0.6, 5.0  # of saturation; what p99 may grow to against one client's, if over the budget
MOST_S, STEP_AND_OPEN_S, QUICK_STEP_AND_OPEN_S = 30.0, (4.0, 20.0), (2.0, 6.0)  # of a closed loop; of an open one


@dataclass(frozen=True)
class Options:
    """n: requests of each measurement. quick: shorter steps, no larger catalogues and no device. base_url: a service
    that runs already, measured over HTTP alone; None starts one with so many `workers`."""

    n: int = 1_000
    workers: int = 1
    quick: bool = False
    base_url: str | None = None
    budget_ms: float = 50.0


@dataclass(frozen=True)
class OverHttp:
    """closed: by number of clients. open: at OPEN_SHARE of saturation; None where no rate was served."""

    closed: dict[int, Load]
    sweep: Sweep
    open: Load | None


@dataclass(frozen=True)
class Report:
    """facts: command, moment, machine, versions, how busy it was. larger: stages in process by number of items. What
    was not measured is None, or empty."""

    facts: dict[str, str]
    dataset: str
    options: Options
    in_process: InProcess | None
    larger: dict[int, dict[str, Percentiles]]
    device: device.Device | None
    http: OverHttp

    @property
    def within_budget(self) -> bool:
        """p99 of one client over HTTP, if no more than LOST of its requests got no full answer."""
        one = self.http.closed[1]
        return one.latency is not None and one.latency.p99_ms <= self.options.budget_ms and one.lost_share <= LOST


def run(
    settings: Settings, home: DatasetWorkspace, options: Options, command: str, report: Callable[[str], None]
) -> Report:
    """Raises RecsysError where there is no data, no champion or no service."""
    facts = about(command, (*PACKAGES, "fastapi", "uvicorn")) | {"processor": processor()}
    facts["load average before"] = str(load_average()[0])
    user_ids, warm_up = sample_of_users(home), max(options.n // 10, 5)
    inside, larger, accelerator = None, {}, None
    if options.base_url is None:
        store = FeatureStore(settings.feature_store(home))
        try:
            report("bench: in process")
            model = load_model(settings, home, store)
            facts["bundle"] = model.folder.name
            inside = in_process.measure(model, user_ids, n=options.n, warm_up=warm_up)
            if not options.quick:
                report("bench: larger catalogues")
                for size in (size for size in LARGER if size > len(model.recommender.catalogue)):
                    larger[size], _ = measure_stages(enlarged(model, size), user_ids, {}, n=options.n, warm_up=warm_up)
                accelerator = device.measure(model, user_ids, "cuda")
        finally:
            store.close()
    with running(home, options.workers, options.base_url) as url:
        http = _over_http(url, tuple(map(recommendation_path, user_ids)), options, warm_up, report)
    facts["load average after"] = str(load_average()[0])
    dataset = DatasetInfo(**read_json(home.data / "dataset.json")).label
    return Report(facts, dataset, options, inside, larger, accelerator, http)


def load_model(settings: Settings, home: DatasetWorkspace, store: FeatureStore) -> Model:
    """The champion as the service loads it."""
    registry = Registry(settings.mlflow_tracking_uri, settings.paths().mlflow, model_name_for(home.name))
    bundle, now = load_bundle(registry.download(registry.resolve(CHAMPION), to=home.bundles)), int(time.time())
    recommender = bundle.recommender
    stats = store.item_stats_as_of(recommender.catalogue, min(int(day_of(now)), store.last_snapshot_day()))
    return Model(bundle.folder, recommender, stats, store.online_state, now)


def _over_http(
    url: str, paths: tuple[str, ...], options: Options, warm_up: int, report: Callable[[str], None]
) -> OverHttp:
    step_s, open_s = QUICK_STEP_AND_OPEN_S if options.quick else STEP_AND_OPEN_S
    with generator() as generate:
        closed = {}
        for clients in CLIENTS:
            report(f"bench: closed loop, {clients} client(s)")
            closed[clients] = generate(Plan(url, paths, clients, None, MOST_S, options.n, warm_up))

        def at(rate: float, seconds: float = step_s) -> Load:
            return generate(Plan(url, paths, rate=rate, seconds=seconds))

        report("bench: open loop at rising rates")
        limit_ms = max(TIMES_CALM * one.p99_ms if (one := closed[1].latency) else 0.0, options.budget_ms)
        rates = sweep(at, closed[max(CLIENTS)].answered_per_s, limit_ms, lambda text: report(f"bench:   {text}"))
        opened = at(OPEN_SHARE * rates.saturation, open_s) if rates.saturation else None
    return OverHttp(closed, rates, opened)
