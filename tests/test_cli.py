"""The front door: dispatch, help, versions, and errors as one line with an exit code."""

import subprocess
import sys

import pytest

import boothlab
import boothlab.commands.train
from boothlab.cli import COMMANDS, main
from boothlab.compose.field_docs import walk
from boothlab.compose.schemas import SCHEMAS
from boothlab.errors import NonFiniteLossError, UserError


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    printed = capsys.readouterr()
    assert all(f"  {name} " in printed.out for name in COMMANDS)
    assert printed.err == ""


def test_no_command_shows_the_help_and_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: boothlab COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"boothlab {boothlab.__version__}\n"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("trian", "there is no command 'trian'; did you mean `boothlab train`?"),
        ("xyzzy", f"there is no command 'xyzzy'; the commands are {', '.join(COMMANDS)}"),
        ("__init__", f"there is no command '__init__'; the commands are {', '.join(COMMANDS)}"),
    ],
)
def test_an_unknown_command_is_named(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err == f"boothlab: error: {line}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("lora.rank=0: must be\nat least 1"), 2, "boothlab: error: lora.rank=0: must be at least 1\n"),
        (NonFiniteLossError("the loss is nan at step 3"), 1, "boothlab: error: the loss is nan at step 3\n"),
        (KeyboardInterrupt(), 130, "boothlab: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(boothlab.commands.train, "run", fail)
    assert main(["train"]) == code
    assert capsys.readouterr().err == line


def test_a_fault_of_the_program_and_an_exit_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("a bug"), SystemExit(143)):
        monkeypatch.setattr(boothlab.commands.train, "run", lambda argv, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)) as caught:
            main(["train"])
        assert caught.value is error


def test_python_m_boothlab_train_as_a_process() -> None:
    command = [sys.executable, "-m", "boothlab", "train", "trainer.max_stpes=3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    line = "boothlab: error: there is no key trainer.max_stpes; did you mean trainer.max_steps?\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert main([command, flag]) == 0
        page = capsys.readouterr().out
        assert page.startswith("usage: boothlab " + command)
        assert not any(line.endswith(" ") for line in page.splitlines())


@pytest.mark.parametrize("command", SCHEMAS)
def test_each_composing_command_explains_its_groups_and_every_field(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert not any(line.endswith(" ") for line in page.splitlines())
    without = ("score", "inspect", "caption", "clusters", "hotels", "evaluate")
    assert (" dollhouse | sd15 | sd21 | sdxl" in page) == (command not in without)
    for info in walk(SCHEMAS[command]):
        assert f"  {info.key}=" in page
        words = f"{info.doc} ({info.expects})".replace("|", " | ").split()
        assert " ".join(words) in " ".join(page.replace("|", " | ").split())


def test_help_shows_the_defaults_of_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "backbone=sd15", "-m", "--help"]) == 0
    page = capsys.readouterr().out
    assert "  trainer.max_steps=1000 " in page
    assert "  seed=0 " in page
    assert "  subject.captions=false " in page
    assert "  sweep.expect={} " in page
    assert "({name: rises or falls})" in page
