"""The command `voken`: help without frameworks, one behaviour through every door, the choice of the framework."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from voken_common.commands import frameworks, main
from voken_common.errors import NonFiniteError, UnavailableError

ROOT = Path(__file__).resolve().parents[3]
NAMES = [subcommand.name for subcommand in main.SUBCOMMANDS]
DOORS = [(row.name, framework) for row in main.SUBCOMMANDS for framework in row.frameworks]
# Generous: a busy machine takes several times what an idle one does, and an import of a framework more than that.
SECONDS = 3.0
HELP = """
import contextlib, io, json, sys, time
begun = time.perf_counter()
from voken_common.commands.main import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main(sys.argv[1:])
loaded = sorted({"numpy", "jax", "torch", "pydantic", "PIL"} & set(sys.modules))
print(json.dumps([shown.getvalue(), loaded, time.perf_counter() - begun]))
"""


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in NAMES)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    done = python("-c", HELP, *words)
    shown, loaded, seconds = json.loads(done.stdout)
    assert loaded == []
    assert seconds < SECONDS
    assert shown.startswith("usage: voken ")


def test_the_overview_names_every_subcommand(capsys):
    assert main.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for row in main.SUBCOMMANDS:
        assert f"  {row.name} " in overview
        assert row.help in overview
    assert main.main([]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_defaults_and_explains_every_option(name):
    parser = main.build_parser(main.find(name))
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            assert action.help, f"{action.option_strings[0]} has no help"
            if isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool):
                assert f"default {action.default}" in text, action.option_strings[0]


def test_python_m_is_the_same_command():
    done = python("-m", "voken", "smaple")
    assert (done.returncode, done.stderr) == (2, "error: voken has no subcommand 'smaple'; did you mean sample?\n")
    version = python("-m", "voken", "--version")
    assert (version.returncode, version.stdout.split()[0]) == (0, "voken")


@pytest.mark.parametrize(("name", "framework"), DOORS)
def test_both_doors_take_the_same_options(name, framework):
    own, common = main.build_parser(main.find(name), framework), main.build_parser(main.find(name))

    def options(parser):
        return {a.dest: (a.option_strings, a.default, a.help) for a in parser._actions if a.dest != "framework"}

    assert options(own) == options(common)
    assert own.get_default("framework") == framework


@pytest.mark.parametrize(
    "words",
    [
        ["reconstruct", "--checkpoint", "nowhere", "--input", "no.png", "--output", "out"],
        ["reconstruct", "--checkpoint", "nowhere", "--input", __file__, "--output", "out", "--step", "last"],
        ["encode", "--checkpoint", "nowhere", "--output", "out", "--batch-size", "0"],
        ["encode", "--output", "out", "--process-index", "2", "--process-count", "2"],
        ["sample", "--checkpoint", "nowhere", "--classes", "0"],
        ["train", "--config", "nowhere.yaml"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_messages_and_statuses_are_the_same_through_every_door(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = set()
    for framework in main.find(words[0]).frameworks:
        for run in (
            lambda f=framework: main.main([words[0], "--framework", f, *words[1:]]),
            lambda f=framework: main.run_module(words[0], f, words[1:]),
        ):
            assert run() == 2
            said.add(capsys.readouterr().err)
    assert len(said) == 1
    assert next(iter(said)).startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("wrong"), 2, "error: wrong"),
        (FileNotFoundError("gone"), 2, "error: gone"),
        (UnavailableError("no device"), 2, "error: no device"),
        (NonFiniteError(3, ["loss"]), 3, "error: step 3: not finite: loss"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command to go on"),
    ],
)
def test_how_a_command_ends(error, status, message, capsys):
    def run(_):
        raise error

    assert main.guarded(run, argparse.Namespace()) == status
    assert capsys.readouterr().err.startswith(message)
    with pytest.raises(ZeroDivisionError):
        main.guarded(lambda _: 1 // 0, argparse.Namespace())


def test_which_framework_runs(monkeypatch):
    installed = {"jax", "torch"}
    monkeypatch.setattr(frameworks, "is_installed", installed.__contains__)
    assert frameworks.choose(None) == "jax"
    assert frameworks.choose("torch") == "torch"
    with pytest.raises(ValueError, match="--framework torch: this command is there in JAX only"):
        frameworks.choose("torch", ("jax",))
    installed.remove("jax")
    assert frameworks.choose(None) == "torch"
    with pytest.raises(ValueError, match=r"--framework jax: JAX is not installed here; pip install 'voken\[jax\]'"):
        frameworks.choose("jax")
    with pytest.raises(ValueError, match=r"needs JAX \(pip install 'voken\[jax\]'\), which is not installed here"):
        frameworks.choose(None, ("jax",))


@pytest.mark.parametrize(
    ("framework", "option"), [("torch", "--dry-run"), ("torch", "--distributed"), ("jax", "--fused")]
)
def test_options_of_the_other_framework_are_refused(framework, option, capsys):
    assert main.main(["train", "--framework", framework, "--config", "x.yaml", option]) == 2
    other = {"jax": "torch", "torch": "jax"}[framework]
    assert f"error: {option} is for " in (said := capsys.readouterr().err)
    assert f"voken train --framework {other}" in said
