"""The command `d2ls`: every command under one name, and help that starts nothing."""

import importlib
import subprocess
import sys

import pytest

from pipeline.__main__ import COMMANDS, main


def test_help_lists_every_command_and_loads_no_library():
    program = (
        "import sys; from pipeline.__main__ import main; main(['--help']); "
        "print(sorted({'torch', 'ray', 'mlflow', 'rasterio', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert [line.split()[0] for line in text if line.startswith("  ") and "d2ls" not in line] == list(
        COMMANDS
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_its_arguments_from_d2ls(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/d2ls", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: d2ls {name} ")
    assert importlib.import_module(f"pipeline.{COMMANDS[name][0]}").main


def test_a_wrong_command_is_refused_with_the_nearest(capsys):
    assert main(["swep"]) == 2
    assert "swep: no such command. Did you mean sweep?" in capsys.readouterr().err
