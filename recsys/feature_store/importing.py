"""Feast imported in a third of the time.

Stage: every stage that opens a feature store; made for the start of the service. In: nothing. Out: the module `feast`.
Absent: any change to what Feast does. Two things are left out of its import, both for the importing alone:

- `typeguard.typechecked`, with which Feast decorates its classes, parses their retriever and compiles it again with a
  check of every argument: half of the time of the import, and a cost of each call afterwards. It is an aid for those
  who develop Feast; typeguard itself leaves it out under `python -O`.
- `feast.torch_wrapper` imports torch in case somebody asks for tensors. The module put in its place does so when
  somebody asks.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

_WRAPPER = "feast.torch_wrapper"
_DECORATED = (  # what Feast imports for the store of `feature_repo` when that is opened or read
    "feast.infra.offline_stores.duckdb",
    "feast.infra.data_retrievers.mlflow.mlflow_dataset_retriever",
)
_importing = threading.Lock()


def import_feast() -> Any:
    """The module `feast`; its first import may be on any thread."""
    with _importing:
        if "feast" in sys.modules:
            return sys.modules["feast"]
        import typeguard

        checked = typeguard.typechecked
        typeguard.typechecked = _unchecked
        sys.modules.setdefault(_WRAPPER, _torch_when_asked())
        try:
            feast = importlib.import_module("feast")
            for name in _DECORATED:
                importlib.import_module(name)
            return feast
        except BaseException:
            sys.modules.pop(_WRAPPER, None)
            raise
        finally:
            typeguard.typechecked = checked


def _unchecked(target: Any = None, **_options: Any) -> Any:
    """As `typechecked` with and without options, and no check."""
    return target if target is not None else _unchecked


def _torch_when_asked() -> ModuleType:
    module = ModuleType(_WRAPPER, "Stands for Feast's module of this name (recsys.feature_store.importing).")
    module.get_torch = lambda: importlib.import_module("torch")  # type: ignore[attr-defined]
    return module
