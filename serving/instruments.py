"""Counters, gauges and histograms of one process, and how those of several workers become one.

Stage: serving. In: numbers with labels. Out: `prometheus_client` metrics to expose. Absent: what is measured and what
it is called (`metrics`), and the text format, which `prometheus_client` writes.

The instruments of prometheus_client decide at import, from the environment, whether their values live in memory or in
files that workers share, for the whole process and once. Here the folder is an argument. Without one, numbers are
Python floats. With one they also stand in prometheus_client's own memory-mapped files, `counter_<pid>.db` and so on,
which its `MultiProcessCollector` reads and merges: counters and histograms are summed over all workers that ever
lived, gauges over those that live. Without `labels()` and one lock a number, an observation is also cheaper.
"""

import os
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

OTHER = "other"
LONGEST_LABEL = 120  # characters; route templates are shorter
INFINITY = float("inf")


@dataclass(frozen=True)
class Sample:
    """Where one number is exposed. `kind` names the worker's file: counter, histogram, or gauge_live<sum|min|max>."""

    kind: str
    metric: str
    name: str
    labels: tuple[tuple[str, str], ...]
    help: str

    def key(self) -> str:
        return mmap_key(self.metric, self.name, [n for n, _ in self.labels], [v for _, v in self.labels], self.help)


class Cells:
    """Numbers by position. Safe to share between threads; one lock for all, held for less than a microsecond."""

    def __init__(self, folder: Path | None, pid: int) -> None:
        """`folder`: must exist; several processes may use it, each under its own `pid`."""
        self.lock = threading.Lock()
        self.values: list[float] = []
        self._folder, self._pid = folder, pid
        self._keys: list[tuple[MmapedDict, str]] = []  # beside `values`; empty without a folder
        self._files: dict[str, MmapedDict] = {}
        if folder is not None:
            forget(folder, pid)

    def new(self, samples: Iterable[Sample]) -> int:
        """Room for a run of numbers, zero at first; the position of the first. The caller holds the lock.

        A counter that an earlier process of the same number left behind goes on, so that it never falls; a gauge was
        removed with that process.
        """
        first = len(self.values)
        for sample in samples:
            value = 0.0
            if self._folder is not None:
                if sample.kind not in self._files:
                    path = self._folder / f"{sample.kind}_{self._pid}.db"
                    self._files[sample.kind] = MmapedDict(str(path))
                file, key = self._files[sample.kind], sample.key()
                value = file.read_value(key)[0]
                self._keys.append((file, key))
            self.values.append(value)
        return first

    def put(self, position: int, value: float) -> None:
        """The caller holds the lock."""
        self.values[position] = value
        if self._keys:
            file, key = self._keys[position]
            file.write_value(key, value, 0.0)

    def close(self) -> None:
        with self.lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            self._keys.clear()


class Family:
    """All series of one metric: one for each combination of label values, `most` of them at most.

    What comes after `most` combinations, and any label that is too long to be one of ours, is counted under "other":
    no caller can make the number of series grow without end.
    """

    kind = ""
    prefix = ""  # of the worker's file; the kind, but for gauges

    def __init__(self, cells: Cells, name: str, text: str, labels: tuple[str, ...] = (), most: int = 64) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._cells, self._most = cells, most
        self._first: dict[tuple[str, ...], int] = {}

    def declare(self, *values: str) -> None:
        """Make a series that starts at zero, so that a rate sees its first step. Others begin when they are used."""
        self._position(values)

    def _position(self, values: tuple[str, ...]) -> int:
        """Of the series' first number. Raises ValueError where there are not as many values as labels."""
        found = self._first.get(values)
        return found if found is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> int:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
        with self._cells.lock:
            if len(self._first) >= self._most or max(map(len, values), default=0) > LONGEST_LABEL:
                values = (OTHER,) * len(self.labels)
            if values not in self._first:
                labels = tuple(zip(self.labels, values, strict=True))
                samples = [
                    Sample(self.prefix or self.kind, self.name, name, labels + more, self.text)
                    for name, more in self._parts()
                ]
                self._first[values] = self._cells.new(samples)
            return self._first[values]

    def _parts(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
        """Name and further labels of each number of a series, in the order of their positions."""
        yield self.name, ()

    def by_label(self) -> dict[tuple[str, ...], float]:
        """The first number of each series in this process."""
        with self._cells.lock:
            return {values: self._cells.values[first] for values, first in self._first.items()}

    def metric(self) -> Metric:
        """What this process has, as prometheus_client exposes it."""
        out = Metric(self.name, self.text, self.kind)
        for values, value in self.by_label().items():
            for name, more in self._parts():
                out.add_sample(name, dict((*zip(self.labels, values, strict=True), *more)), value)
        return out


class Counter(Family):
    """Only grows. Exposed as `<name>_total`."""

    kind = "counter"

    def _parts(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
        yield f"{self.name}_total", ()

    def add(self, *values: str, amount: float = 1.0) -> None:
        position = self._position(values)
        cells = self._cells
        with cells.lock:
            cells.put(position, cells.values[position] + amount)


class Gauge(Family):
    """Goes up and down. `across`: of the living workers' values, their "sum", "min" or "max"."""

    kind = "gauge"

    def __init__(
        self,
        cells: Cells,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        most: int = 64,
        across: str = "sum",
    ) -> None:
        self.prefix = f"gauge_live{across}"
        super().__init__(cells, name, text, labels, most)

    def set(self, value: float, *values: str) -> None:
        position = self._position(values)
        with self._cells.lock:
            self._cells.put(position, value)


class Histogram(Family):
    """Counts of values at most as large as each bound, and their sum."""

    kind = "histogram"

    def __init__(
        self,
        cells: Cells,
        name: str,
        text: str,
        bounds: Sequence[float],
        labels: tuple[str, ...] = (),
        most: int = 64,
    ) -> None:
        """`bounds`: ascending, without infinity, which is added."""
        self.bounds = (*bounds, INFINITY)
        super().__init__(cells, name, text, labels, most)

    def _parts(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
        yield f"{self.name}_sum", ()
        for bound in self.bounds:
            yield f"{self.name}_bucket", (("le", floatToGoString(bound)),)

    def observe(self, value: float, *values: str) -> None:
        first = self._position(values)
        bucket = first + 1 + bisect_left(self.bounds, value)
        cells = self._cells
        with cells.lock:
            cells.put(first, cells.values[first] + value)
            cells.put(bucket, cells.values[bucket] + 1.0)

    def metric(self) -> Metric:
        out = Metric(self.name, self.text, self.kind)
        n = len(self.bounds) + 1
        with self._cells.lock:
            series = {values: self._cells.values[first : first + n] for values, first in self._first.items()}
        for values, (total, *counts) in series.items():
            labels = dict(zip(self.labels, values, strict=True))
            below = 0.0
            for bound, count in zip(self.bounds, counts, strict=True):
                below += count  # what is exposed is cumulative
                out.add_sample(f"{self.name}_bucket", {**labels, "le": floatToGoString(bound)}, below)
            out.add_sample(f"{self.name}_count", labels, below)
            out.add_sample(f"{self.name}_sum", labels, total)
        return out


def merged(folder: Path) -> list[Metric]:
    """The metrics of all workers that share a folder."""
    return list(MultiProcessCollector.merge([str(path) for path in sorted(folder.glob("*.db"))], accumulate=True))


def live_pids(folder: Path) -> list[int]:
    """The workers of a folder that still run. Gauges of the others are removed, what they counted stays."""
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("*.db")}
    living = sorted(filter(_lives, pids))
    for pid in pids - set(living):
        forget(folder, pid)
    return living


def forget(folder: Path, pid: int) -> None:
    """Remove the gauges of a worker that has ended. Its counts stay: a counter must not fall."""
    for path in folder.glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process: it lives
        return True
    return True
