"""The scanner itself finds what it must find."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.no_code import assert_no_pickle, is_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_found(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps({"weights": np.arange(3)}, protocol=protocol)
    assert is_pickle(data)
    (tmp_path / "model.json").write_bytes(data)
    with pytest.raises(AssertionError):
        assert_no_pickle(tmp_path)


def test_json_is_not_one_and_a_foreign_extension_is_refused(tmp_path: Path) -> None:
    assert not is_pickle(b'{"a": 1}\n')
    (tmp_path / "a.json").write_text("{}")
    assert_no_pickle(tmp_path)
    (tmp_path / "a.pt").write_text("{}")
    with pytest.raises(AssertionError):
        assert_no_pickle(tmp_path)
