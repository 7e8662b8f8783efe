"""Feast behind one class: the feature tables, their point-in-time reads, and the state that a request reads."""

from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.store import FeatureStore
from recsys.feature_store.tables import table_path, write_feature_tables

__all__ = ["FeatureStore", "FeatureStoreConfig", "table_path", "write_feature_tables"]
