"""Feast without the weight of its import: what is left out, and that all works as before."""

import subprocess
import sys

import pytest

from recsys.feature_store.importing import _unchecked


def run(code: str) -> list[str]:
    """What a fresh process prints, a line each."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_neither_torch_nor_checks_are_imported_and_both_work_afterwards() -> None:
    code = """
import sys, typeguard
before = typeguard.typechecked
from recsys.feature_store.importing import import_feast
feast = import_feast()
print("torch" in sys.modules, typeguard.typechecked is before, import_feast() is feast, sys.modules["feast"] is feast)
from feast import Entity, FeatureView, OnDemandFeatureView
made = (Entity.__init__, FeatureView.__init__)
print([method for method in made if "check_argument_types" in method.__code__.co_names])
from feast.torch_wrapper import get_torch
print(get_torch().tensor([1, 2]).sum().item(), "torch" in sys.modules)
"""
    assert run(code) == ["False True True True", "[]", "3 True"]


def test_whoever_imported_feast_before_keeps_it() -> None:
    code = """
import sys, feast
wrapper = sys.modules["feast.torch_wrapper"]
from recsys.feature_store.importing import import_feast
print(import_feast() is feast, sys.modules["feast.torch_wrapper"] is wrapper)
"""
    assert run(code) == ["True True"]


def test_a_failed_import_leaves_nothing_behind() -> None:
    code = """
import sys, typeguard
before = typeguard.typechecked
sys.modules["feast.feature_store"] = None
from recsys.feature_store.importing import import_feast
try:
    import_feast()
except ImportError:
    print(typeguard.typechecked is before, "feast.torch_wrapper" in sys.modules)
"""
    assert run(code) == ["True False"]


def test_the_decorator_gives_back_what_it_decorates() -> None:
    class Decorated:
        pass

    assert _unchecked(Decorated) is Decorated
    assert _unchecked(collection_check_strategy=None)(Decorated) is Decorated
    with pytest.raises(AttributeError):
        _ = _unchecked(Decorated).__wrapped__  # type: ignore[attr-defined]
