"""The identity of a run."""

from pathlib import Path

import pytest

from pyro_bnn.runtime.run_identity import require_same_run
from pyro_bnn.runtime.tensor_files import CheckpointError

RUN = Path("run")


def test_identities_are_compared_in_the_form_that_json_gives_them():
    require_same_run(RUN, {"a": [1, 2], "b": {"x": "1"}}, {"a": (1, 2), "b": {"x": "1"}})


def test_the_error_names_each_setting_and_the_first_entry_of_a_mapping():
    saved, current = {"a": 1, "b": {"x": "1"}}, {"a": 2, "b": {"x": "2", "y": ""}}
    with pytest.raises(CheckpointError, match=r"^run: .*a \(saved 1, now 2\); b x differ"):
        require_same_run(RUN, saved, current)


def test_a_setting_that_one_run_lacks_is_a_difference():
    with pytest.raises(CheckpointError, match=r"c \(saved 3, now None\)"):
        require_same_run(RUN, {"c": 3}, {})
    with pytest.raises(CheckpointError, match=r"c \(saved None, now 3\)"):
        require_same_run(RUN, {}, {"c": 3})
