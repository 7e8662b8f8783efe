"""What studies and monitoring still call a `Pipeline`. It goes once they take one."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import PipelineConfig
from pipelines.pipeline import Pipeline, open_pipeline, say
from pipelines.training_set import TrainingSet
from recsys.data.split import Split
from recsys.data.tables import Tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace, Workspace


class Job(Pipeline):
    def __init__(
        self,
        root: Workspace | None = None,  # noqa: ARG002
        home: DatasetWorkspace | None = None,
        settings: Settings | None = None,
        config: PipelineConfig | None = None,
        tables: Tables | None = None,
        report: Callable[[str], None] = say,
        data: TrainingSet | None = None,
    ) -> None:
        assert home is not None
        assert settings is not None
        assert config is not None
        if data is None:
            assert tables is not None
            data = TrainingSet(tables, tables.info)
        super().__init__(home, settings, config, data, report)

    @property
    def tables(self) -> Tables:
        return self.data.tables

    @cached_property
    def split(self) -> Split:
        return self.data.split

    @cached_property
    def catalogue(self) -> Catalogue:
        return self.data.catalogue

    @cached_property
    def histories(self) -> Histories:
        return self.data.histories

    def window(self, after: int, through: int) -> pd.DataFrame:
        return self.data.window(after, through)

    def work(self, name: str) -> Path:
        return self.home.work / name


def open_job(dataset: str | None, settings: Settings, **options: Any) -> Job:
    opened = open_pipeline(dataset, settings, **options)
    return Job(None, opened.home, settings, opened.config, None, opened.report, opened.data)
