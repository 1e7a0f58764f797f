"""Composition: each mistake as one clear line, run folders by hash, and multiruns whose jobs do not stop each other."""

import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from boothlab.cli import main
from boothlab.compose.job import Job
from boothlab.compose.naming import folder_name, identity, run_name
from boothlab.compose.run import compose, run
from boothlab.compose.schemas import conf_dir
from boothlab.compose.typed import from_resolved, load
from boothlab.config import Precision, SampleConfig, TrainConfig
from boothlab.errors import NonFiniteLossError, UserError

CALLS: list[tuple[TrainConfig, dict[str, Any], Path]] = []
MANY: list[bool] = []


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; Hydra's logging set-up is undone."""
    CALLS.clear()
    MANY.clear()
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield folder
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


def body(config: TrainConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> str:
    """Stands in for a training; the rank says how it ends."""
    CALLS.append((config, resolved, run_dir))
    MANY.append(one_of_many)
    endings: dict[int, BaseException] = {
        91: NonFiniteLossError("the loss is nan at step 3"),
        92: RuntimeError("a bug"),
        93: SystemExit(5),
        94: SystemExit(143),
        95: KeyboardInterrupt(),
        96: UserError("no photos"),
        97: ValueError("a bug of Hydra's kind"),
        98: SystemExit("words"),
    }
    if config.lora.rank in endings:
        raise endings[config.lora.rank]
    return "done"


# --- mistakes -----------------------------------------------------------------------------------------------------

MISTAKES = [
    ("trainer.max_stpes=3", "there is no key trainer.max_stpes; did you mean trainer.max_steps?"),
    ("max_steps=3", "there is no key max_steps; did you mean trainer.max_steps?"),
    ("train_text_encoder=true", "there is no key train_text_encoder; did you mean lora.train_text_encoder?"),
    ("backbon=sd15", "there is no key backbon; did you mean backbone?"),
    ("xyzzy=1", "there is no key xyzzy; --help lists them all"),
    ("+xyzzy=1", "there is no key xyzzy; --help lists them all"),
    ("+lora.xyzzy=1", "there is no key lora.xyzzy; --help lists them all"),
    ("~lora.xyzzy", "there is no key lora.xyzzy; --help lists them all"),
    ("model/unet=1", "there is no key model/unet; --help lists them all"),
    ("hydra.xyzzy=1", "there is no key hydra.xyzzy; --help lists them all"),
    ("trainer.max_steps=abc", "trainer.max_steps=abc: expected whole number"),
    ("trainer.max_steps=1.5", "trainer.max_steps=1.5: expected whole number"),
    ("trainer.max_steps=", "trainer.max_steps=: expected whole number"),
    ("seed=null", "seed=null: expected whole number"),
    ("optim.lr=fast", "optim.lr=fast: expected number"),
    ("optim.text_encoder_lr=fast", "optim.text_encoder_lr=fast: expected number or null"),
    ("data.flip=maybe", "data.flip=maybe: expected true or false"),
    ("evaluation.seeds=[a]", "evaluation.seeds[0]=a: expected whole number"),
    ("backbone.precision=bf61", "backbone.precision=bf61: expected one of fp32, bf16, fp16; did you mean bf16?"),
    ("tracking.mirrors=cvs", "tracking.mirrors[0]=cvs: expected one of csv, tensorboard; did you mean csv?"),
    ("lora=3", "lora is a section; set its fields, as in lora.rank=…"),
    ("backbone=sd9", "backbone=sd9: no such option; backbone is one of dollhouse, sd15, sd21, sdxl"),
    (
        "subject=bera",
        "subject=bera: no such option; did you mean bear? subject is one of bear, bear_plushie, "
        "car, dog, dreambench, folder, robot, robot_toy",
    ),
    (
        "subject=folder",
        "subject.images, subject.class_noun have no value; give them, as in subject.images=… subject.class_noun=…",
    ),
    ("subject.images=???", "subject.images has no value; give it, as in subject.images=…"),
    ("name=${nope}", "name cannot be filled in: interpolation key 'nope' not found"),
    ("optim.lr=${subject.token}", None),
    ("foo", "cannot read 'foo': write key=value, as in seed=1"),
    ("foo[=1", "cannot read 'foo[=1': write key=value, as in seed=1"),
    (
        "lora.rank='",
        "cannot read \"lora.rank='\": put a value with special characters in quotes, as in 'lora.rank=\"'\"'",
    ),
    ("lora.rank=4,8", "lora.rank=4,8: for a list write lora.rank=[4,8]; for a run with each value add -m"),
    ("lora.rank=range(1,3)", "lora.rank=range(1,3): add -m for a run with each value"),
    ("lora.rank=0", "lora.rank=0: must be at least 1"),
    ("seed=-1", "seed=-1: must not be negative"),
    (
        "optim.text_encoder_lr=1e-5",
        "optim.text_encoder_lr=1e-05: has no effect without lora.train_text_encoder=true; set that, or leave it null",
    ),
    ("subject.instance_prompt=a photo", None),
    ("--config-dir=nope", "--config-dir nope: there is no such folder"),
    (
        "--experimental-rerun=x",
        "--experimental-rerun would load a pickle, which can run code; use the manifest instead",
    ),
    (
        "--xyzzy",
        "unrecognized arguments: --xyzzy; overrides are written key=value, and `boothlab train --help` lists them",
    ),
]


@pytest.mark.parametrize(("argument", "line"), MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    argument: str, line: str | None, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", argument]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("boothlab: error: ")
    assert printed.err.count("\n") == 1
    if line is not None:
        assert printed.err == f"boothlab: error: {line}\n"
    assert list(workplace.iterdir()) == []


def test_a_mistake_in_a_config_file_names_the_file(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "recipe").mkdir()
    for text, line in [
        ("lora:\n  rnak: 3", "in the config file recipe/mine.yaml: there is no key lora.rnak; did you mean lora.rank?"),
        ("lora:\n  rank: x", "in the config file recipe/mine.yaml: lora.rank=x: expected whole number"),
    ]:
        (workplace / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        assert main(["train", "--config-dir", ".", "recipe=mine", "+encoders=dollhouse"]) == 2
        assert capsys.readouterr().err == f"boothlab: error: {line}\n"
    assert main(["train", "--config-dir", ".", "recipe=mine", "encoders=dollhouse"]) == 2
    line = "encoders: the chosen config files have no such group; write +encoders=… to add it"
    assert capsys.readouterr().err == f"boothlab: error: {line}\n"
    (workplace / "recipe" / "mine.yaml").write_text("lora: [")
    assert main(["train", "--config-dir", ".", "recipe=mine"]) == 2
    printed = capsys.readouterr().err
    assert "mine.yaml" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "override",
    [
        "+_target_=os.system",
        "+trainer._target_=os.system",
        "+lora.deep.er._target_=os.system",
        "+hydra.callbacks.mine._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=boothlab.cli.main",
    ],
)
def test_a_config_cannot_name_code_to_run(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    key, _, value = override.lstrip("+").partition("=")
    for flag in ([], ["-m"]):
        assert main(["train", override, *flag]) == 2
        assert capsys.readouterr().err == (
            f"boothlab: error: {key}={value}: a config cannot name code to run; remove the key\n"
        )


def test_neither_can_a_file_or_a_saved_config(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "evil.yaml").write_text(
        "defaults: [train, _self_]\nhydra:\n  callbacks:\n    x:\n      _target_: os.abort\n"
    )
    assert main(["train", "--config-dir", ".", "--config-name", "evil"]) == 2
    assert "hydra.callbacks.x._target_=os.abort" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot name code"):
        from_resolved({"subject": {"images": {"_target_": "os.abort"}}}, TrainConfig)
    with pytest.raises(UserError, match=r"evaluation\.prompts\[0\]\._target_"):
        from_resolved({"evaluation": {"prompts": [{"_target_": "os.abort"}]}}, TrainConfig)


def test_a_run_folder_that_cannot_be_made_is_named(workplace: Path) -> None:
    (workplace / "outputs").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot use .*outputs.*: "):
        run("train", body, [])


# --- plain text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "prompts"),
    [
        ("prompt=a dog", ["a dog"]),
        ("prompt=a photo of a {token} {class}, at night", ["a photo of a {token} {class}, at night"]),
        ("prompt=a dog's bed", ["a dog's bed"]),
        ("prompt=it's \\", ["it's \\"]),
        ("prompt='a dog'", ["a dog"]),
        ("prompt=3", ["3"]),
        ("prompt=[a dog,a cat]", ["a dog", "a cat"]),
        ("prompt=['a dog, big','a {token}']", ["a dog, big", "a {token}"]),
        ("prompt=a = b (c) [d]: e", ["a = b (c) [d]: e"]),
        ("prompt=ein Häuschen – 家", ["ein Häuschen – 家"]),
    ],
)
def test_a_prompt_is_taken_as_it_was_typed(argument: str, prompts: list[str]) -> None:
    typed, _ = load(compose("sample", [argument]), SampleConfig)
    assert typed.prompt == prompts


def test_text_and_lists_of_one() -> None:
    words = [
        "subject.instance_prompt=a sks robot, at {night}",
        "evaluation.seeds=3",
        "tracking.tags=a",
        "subject.token=sks",
    ]
    typed, _ = load(compose("train", words), TrainConfig)
    assert typed.subject.instance_prompt == "a sks robot, at {night}"
    assert (typed.evaluation.seeds, typed.tracking.tags) == ([3], ["a"])
    typed, _ = load(compose("train", ["subject.images=C:\\my photos\\it's", "tracking.group=null"]), TrainConfig)
    assert (typed.subject.images, typed.tracking.group) == ("C:\\my photos\\it's", None)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_gets_the_typed_config_the_plain_dict_and_its_folder(workplace: Path) -> None:
    assert run("train", body, ["lora.rank=3", "seed=5", "experiment=my study/1"]) == 0
    [(typed, resolved, run_dir)] = CALLS
    assert isinstance(typed, TrainConfig)
    assert (typed.lora.rank, typed.backbone.precision) == (3, Precision.fp32)
    assert (type(resolved), type(resolved["lora"]), type(resolved["evaluation"]["seeds"])) == (dict, dict, list)
    assert (resolved["backbone"]["precision"], resolved["name"]) == ("fp32", "dollhouse-robot")
    assert run_dir == workplace / "outputs" / "my-study-1" / run_name(resolved)
    assert run_dir.name == f"dollhouse-robot-{identity(resolved)[0][:8]}-s5"
    assert sorted(path.name for path in run_dir.iterdir()) == [".hydra", "train.log"]
    assert sorted(path.name for path in (run_dir / ".hydra").iterdir()) == [
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    ]
    assert Path.cwd() == workplace


def test_the_folder_is_named_by_what_can_change_the_result(workplace: Path) -> None:
    names = []
    for words in ([], ["tracking.wandb=disabled", "trainer.threads=1"], ["lora.rank=3"], ["seed=1"], ["name=my run"]):
        run("train", body, words)
        names.append(CALLS[-1][2].name)
    base, logging_only, rank, seed, renamed = names
    assert logging_only == base
    assert rank != base
    assert seed == base.removesuffix("s0") + "s1"
    assert renamed == base.replace("dollhouse-robot", "my-run")


@pytest.mark.parametrize(
    ("text", "name"),
    [("a b/c", "a-b-c"), ("../..", "run"), ("", "run"), ("größe_1.5", "größe_1.5"), ("x" * 99, "x" * 80), (".x.", "x")],
)
def test_folder_names_are_safe(text: str, name: str) -> None:
    assert folder_name(text) == name


def test_hydra_flags_work_as_ever(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora.rank=3", "--cfg", "job", "--resolve"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.lora.rank, printed.name) == (3, "dollhouse-robot")
    assert main(["train", "--info", "defaults"]) == 0
    assert "recipe/dollhouse" in capsys.readouterr().out
    assert main(["train", "--hydra-help"]) == 0
    assert "== Flags ==" in capsys.readouterr().out
    assert list(workplace.iterdir()) == []
    assert run("train", body, ["hydra.run.dir=elsewhere", "hydra.output_subdir=null"]) == 0
    assert CALLS[-1][2] == workplace / "elsewhere"


def test_sample_leaves_nothing_of_its_own_behind(workplace: Path) -> None:
    assert (
        run("sample", lambda config, resolved, folder, many: CALLS.append((config, resolved, folder)), ["prompt=a dog"])
        == 0
    )
    assert len(CALLS) == 1
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "error"),
    [
        (91, NonFiniteLossError),
        (92, RuntimeError),
        (93, SystemExit),
        (95, KeyboardInterrupt),
        (96, UserError),
        (97, ValueError),
    ],
)
def test_a_single_run_lets_exceptions_through(
    rank: int, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error) as caught:
        run("train", body, [f"lora.rank={rank}"])
    assert caught.traceback[-1].name == "body"
    assert capsys.readouterr().err == ""


# --- multiruns ----------------------------------------------------------------------------------------------------


def test_each_job_of_a_multirun_has_the_folder_of_the_same_single_run(workplace: Path) -> None:
    assert run("train", body, ["-m", "lora.rank=2,3", "seed=0,1", "subject=robot,bear"]) == 0
    folders = [run_dir for _, _, run_dir in CALLS]
    assert len(set(folders)) == 8
    assert MANY == [True] * 8
    for _, resolved, run_dir in CALLS:
        assert run_dir == workplace / "outputs" / "train" / run_name(resolved)
        assert (run_dir / ".hydra" / "config.yaml").is_file()
    assert run("train", body, ["lora.rank=2", "seed=1", "subject=bear"]) == 0
    assert CALLS[-1][2] in folders
    assert MANY[-1] is False


def test_a_failing_job_stops_no_other_and_keeps_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", body, ["-m", "lora.rank=91,92,93,98,0,96,4"]) == 1
    assert [config.lora.rank for config, _, _ in CALLS] == [91, 92, 93, 98, 96, 4]
    printed = capsys.readouterr().err
    assert "boothlab: error: the job lora.rank=91 failed: the loss is nan at step 3\n" in printed
    assert "boothlab: error: the job lora.rank=92 failed: RuntimeError: a bug\n" in printed
    assert "boothlab: error: the job lora.rank=0 failed: lora.rank=0: must be at least 1\n" in printed
    assert printed.count("Traceback") == 1
    assert "HYDRA_FULL_ERROR" not in printed
    assert printed.endswith("boothlab: 6 of 7 jobs failed\n")


def test_a_multirun_of_bad_input_alone_exits_with_2() -> None:
    assert run("train", body, ["-m", "lora.rank=0,-1"]) == 2
    assert run("train", body, ["-m", "lora.rank=0,4"]) == 1
    assert run("train", body, ["-m", "lora.rank=96"]) == 2


@pytest.mark.parametrize(("rank", "error"), [(94, SystemExit), (95, KeyboardInterrupt)])
def test_being_told_to_stop_ends_a_multirun(rank: int, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run("train", body, ["-m", f"lora.rank={rank},4"])
    assert len(CALLS) == 1


@pytest.mark.parametrize("override", ["trainer.max_stpes=1,2", "backbone=dollhouse,sd9", "trainer.max_steps=80,abc"])
def test_a_multirun_that_cannot_be_composed_starts_no_job(override: str, workplace: Path) -> None:
    with pytest.raises(UserError):
        run("train", body, ["-m", override])
    assert CALLS == []


def test_a_job_whose_config_has_holes_is_refused_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", body, ["-m", "subject=folder,robot"]) == 1
    assert len(CALLS) == 1
    assert "the job subject=folder failed: subject.images, subject.class_noun have no value" in capsys.readouterr().err


def test_a_sweep_file_runs_as_hydra_users_expect(workplace: Path) -> None:
    (workplace / "sweeps").mkdir()
    (workplace / "sweeps" / "rank.yaml").write_text(
        "defaults: [train, _self_]\nexperiment: rank\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lora.rank: 2,3\n"
    )
    assert run("train", body, ["--config-dir", "sweeps", "--config-name", "rank", "seed=1"]) == 0
    assert [(config.lora.rank, config.seed) for config, _, _ in CALLS] == [(2, 1), (3, 1)]
    assert {run_dir.parent for _, _, run_dir in CALLS} == {workplace / "outputs" / "rank"}


def test_a_job_can_be_sent_to_another_process() -> None:
    job = pickle.loads(pickle.dumps(Job(TrainConfig, body)))
    assert (job.schema, job.body) == (TrainConfig, body)


def test_config_files_of_ones_own(workplace: Path) -> None:
    shutil.copytree(conf_dir(), workplace / "mine")
    (workplace / "mine" / "subject" / "cat.yaml").write_text("images: dollhouse:cat/2\nclass_noun: cat\n")
    assert run("train", body, ["--config-path", "mine", "subject=cat"]) == 0
    assert run("train", body, ["--config-dir", "mine", "subject=cat"]) == 0
    assert [config.subject.class_noun for config, _, _ in CALLS] == ["cat", "cat"]
    assert CALLS[0][2] == CALLS[1][2]


def test_composing_is_quick() -> None:
    start = time.process_time()
    load(compose("train"), TrainConfig)
    assert time.process_time() - start < 2.0
    assert os.environ.get("HYDRA_FULL_ERROR") is None
