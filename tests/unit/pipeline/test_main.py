"""The command `d2ls`: all commands under one name, and a help that imports nothing heavy."""

import importlib
import os
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


COMPLETIONS = {
    "d2ls s": ({"shard", "sweep"}, {"train"}),
    "d2ls shard lov": ({"loveda"}, {"potsdam", "--check"}),
    "d2ls shard m": ({"my.yaml", "mbrsc"}, {"map.tif"}),
    "d2ls shard my.yaml --": ({"--check", "--verify", "--no-ray"}, {"--seeds"}),
    "d2ls train demo train.optimizer.l": ({"train.optimizer.lr="}, {"train.epochs="}),
    "d2ls predict m": ({"my.yaml", "map.tif"}, {"mbrsc"}),
    "d2ls predict MODEL a.tif b.tif --submission ": ({"loveda", "uavid"}, {"potsdam"}),
}
"""Line before the cursor to words that must be offered, and words that must not."""

COMPLETE = """
import os, sys
from pipeline.__main__ import main
for line in sys.argv[1:]:
    os.environ |= {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    try:
        main()
    except SystemExit as end:
        print(end.code, *open("answer").read().split(os.environ["_ARGCOMPLETE_IFS"]))
"""


def test_the_shell_completes_commands_recipes_keys_and_options(tmp_path):
    for name in ("my.yaml", "map.tif"):
        (tmp_path / name).touch()
    done = subprocess.run(  # argcomplete opens and closes file descriptors of its own
        [sys.executable, "-c", COMPLETE, *COMPLETIONS], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, "_ARGCOMPLETE_STDOUT_FILENAME": "answer", "_ARGCOMPLETE_IFS": "\n"},
    )  # fmt: skip
    for line, (expected, unwanted) in zip(done.stdout.splitlines(), COMPLETIONS.values(), strict=True):
        status, *words = line.split()
        assert status == "0"
        assert expected <= set(words), line
        assert not unwanted & set(words), line
