"""The program as a whole: help, lists, and the time to import it."""

import pathlib
import subprocess
import sys

import pytest

import pyro_bnn
from pyro_bnn.cli import app as cli_app
from pyro_bnn.runs.names import DataName, GuideName, ModelName, PriorName
from tests.cli.commands import assert_refused_at_once, call, fit_small, succeed

COMMANDS = ("fit", "demo", "compress", "compare", "evaluate", "reproduce", "list")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    text = succeed(command, "--help").stdout
    assert f"pyro-bnn {command}" in text or command == "list"
    assert "Traceback" not in text


def test_the_help_of_the_program_names_every_command():
    text = succeed("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in text


def test_the_command_line_imports_neither_torch_nor_pyro():
    # an empty package of that name, so that only the imports of the command line count
    code = """
import sys, types
package = types.ModuleType("pyro_bnn")
package.__path__ = [sys.argv[1]]
sys.modules["pyro_bnn"] = package
import pyro_bnn.cli.entry
print([name for name in ("torch", "pyro", "matplotlib", "sklearn", "numpy") if name in sys.modules])
"""
    folder = pathlib.Path(pyro_bnn.__file__).parent
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_list_shows_every_name_with_a_description():
    lines = succeed("list").stdout.splitlines()
    for names in (ModelName, PriorName, GuideName, DataName):
        assert f"{names.kind()}s:" in lines
        for name in names:
            assert len(name.description) > 20
            assert f"  {name.ljust(22)}  {name.description}" in lines


def test_an_unknown_command_is_refused_in_one_line():
    assert_refused_at_once(call("fitt"), "fitt", "fit")


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(settings):
        raise KeyError("defect")

    monkeypatch.setattr("pyro_bnn.runs.settings.schedules", fail)
    assert isinstance(fit_small("run").exception, KeyError)


def test_ctrl_c_outside_of_training_exits_with_status_130(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_bnn.runs.run.load_data", interrupt)
    result = fit_small("run")
    assert result.exit_code == 130
    assert result.stderr == "pyro-bnn: stopped\n"


def test_a_free_folder_has_the_first_free_number(tmp_path):
    assert cli_app.free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert cli_app.free_folder(tmp_path / "demo") == tmp_path / "demo-3"
