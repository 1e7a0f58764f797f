"""`boothlab score`: a run's own scores at scales of 1, other ones without training, and bad input in one line."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from boothlab.building.score import ScoreRun
from boothlab.cli import main
from boothlab.dreambooth.run import TrainingRun
from boothlab.tracking import metrics
from training_runs import ADAPTER, TIMINGS, Lab, history, stopped_after, summary


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Hydra's logging set-up is undone."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Path:
    """A run that changes the images clearly, with a text-encoder part and class images."""
    extra = ("lora.train_text_encoder=true", "optim.lr=0.2", "evaluation.seeds=[0,3]", "lora.dropout=0.2")
    return lab.train("trained", *extra)


def words_of(lab: Lab, name: str, *extra: str) -> list[str]:
    paths = [f"paths.outputs={lab.folder / name}", f"paths.cache={lab.folder / 'cache'}"]
    return [*paths, "threads=1", "accelerator=cpu", "tracking.wandb=disabled", *extra]


def score(lab: Lab, name: str, *extra: str, code: int = 0) -> Path:
    """Run `boothlab score`, expect an exit code, and give the run folder."""
    assert main(["score", *words_of(lab, name, *extra)]) == code
    (run_dir,) = (lab.folder / name / "score").glob("score-*")
    return run_dir


def scores_at(run_dir: Path, step: int) -> dict[str, float]:
    """What was scored at a step, without what a clock says."""
    found: dict[str, float] = {}
    for row_step, row in history(run_dir):
        if row_step == step:
            found |= {key: value for key, value in row.items() if key.startswith("eval/") and key not in TIMINGS}
    return found


def pictures(run_dir: Path, step: int) -> dict[str, bytes]:
    folder = run_dir / "samples" / f"step_{step:06d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png")) if path.name != "grid.png"}


def fingerprints(folder: Path) -> dict[Path, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


# --- what it measures ---------------------------------------------------------------------------------------------


def test_scales_of_one_give_the_run_s_own_scores(lab: Lab, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprints(trained)
    scored = score(lab, "ones", f"run={trained}")
    assert fingerprints(trained) == before
    assert len(scores_at(scored, 4)) >= 7
    for step in (0, 4):
        assert scores_at(scored, step) == scores_at(trained, step)
        assert pictures(scored, step) == pictures(trained, step)
        files = [run / "samples" / f"step_{step:06d}" / "scores.csv" for run in (scored, trained)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert "scores (dollhouse encoders)" in capsys.readouterr().err
    assert summary(scored)["status"] == "finished"
    assert summary(scored)["ceilings"] == summary(trained)["ceilings"]
    assert not (scored / "checkpoints").exists()
    assert not (scored / "lora").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ("trainer.ema_decay=0.5", "optim.lr=0.2"),
        ("backbone.precision=bf16", "optim.lr=0.2", "lora.train_text_encoder=true"),
        ("lora.alpha=5", "optim.lr=0.1", "lora.unet_targets=[to_q,conv1,conv2,proj_in]"),
        ("trainer.gradient_checkpointing=true", "optim.lr=0.2", "evaluation.pres_images=0"),
    ],
)
def test_scales_of_one_give_the_run_s_own_scores_whatever_was_trained(extra: tuple[str, ...], lab: Lab) -> None:
    name = extra[0].partition("=")[0]
    run = lab.train(f"trained-{name}", *extra)
    scored = score(lab, f"ones-{name}", f"run={run}")
    assert scores_at(scored, 4) == scores_at(run, 4)
    assert pictures(scored, 4) == pictures(run, 4)


def test_scales_of_nothing_give_the_base_model_s_images(lab: Lab, trained: Path) -> None:
    scored = score(lab, "zeros", f"run={trained}", "unet_scale=0", "text_encoder_scale=0")
    assert pictures(scored, 4) == pictures(scored, 0) == pictures(trained, 0)
    assert scores_at(scored, 4) == {key: value for key, value in scores_at(trained, 0).items() if "ceiling" not in key}


@pytest.mark.slow
def test_each_scale_is_one_part_s(lab: Lab, trained: Path) -> None:
    """The four corners of the grid differ, and a scale in between is in between neither of them."""
    words = [*words_of(lab, "grid", f"run={trained}"), "unet_scale=0,1", "text_encoder_scale=0,1", "steps=1"]
    assert main(["score", "-m", *words]) == 0
    found = {}
    for path in (lab.folder / "grid" / "score").glob("score-*"):
        config = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["config"]
        found[config["unet_scale"], config["text_encoder_scale"]] = tuple(pictures(path, 4).values())
    assert set(found) == {(u, t) for u in (0.0, 1.0) for t in (0.0, 1.0)}
    assert len(set(found.values())) == 4


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ScoreRun]:
    """The scorings that were built; none of them draws."""
    found: list[ScoreRun] = []
    monkeypatch.setattr(ScoreRun, "execute", lambda self: found.append(self))
    return found


def test_what_is_not_asked_for_stays_as_in_the_run(lab: Lab, trained: Path, built: list[ScoreRun]) -> None:
    asked: dict[str, tuple[str, ...]] = {
        "nothing": (),
        "guidance": ("guidance_scale=2",),
        "guidance of 0": ("guidance_scale=0",),
        "sampler": ("scheduler=ddim", "steps=3", "negative_prompt=a dog"),
        "prompts": ("prompts=a {token} {class} on the moon", "image_seeds=[7,8]"),
    }
    for index, extra in enumerate(asked.values()):
        score(lab, f"changed-{index}", f"run={trained}", *extra)
    settings = [asdict(run.evaluator.sampler.settings) for run in built]
    plans = [run.evaluator.plan for run in built]
    own = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))["config"]["evaluation"]
    assert settings[0] == own["sampler"]
    assert settings[1] == {**settings[0], "guidance_scale": 2.0}
    assert settings[2] == {**settings[0], "guidance_scale": 0.0}
    assert settings[3] == {**settings[0], "scheduler": "ddim", "steps": 3, "negative_prompt": "a dog"}
    assert settings[4] == settings[0]
    assert plans[0] == plans[1] == plans[2] == plans[3]
    assert (plans[0].prompts, plans[0].seeds) == (("a photo of a sks robot",), (0, 3))
    assert (plans[4].prompts, plans[4].seeds) == (("a sks robot on the moon",), (7, 8))
    assert {(run.step, run.unet_scale, run.text_encoder_scale) for run in built} == {(4, 1.0, 1.0)}


# --- once ---------------------------------------------------------------------------------------------------------


def test_a_finished_scoring_is_not_drawn_again(lab: Lab, trained: Path, built: list[ScoreRun]) -> None:
    scored = score(lab, "again", f"run={trained}")
    before = fingerprints(scored)
    assert score(lab, "again", f"run={trained}") == scored
    assert len(built) == 1
    kept = {path: mark for path, mark in fingerprints(scored).items() if ".hydra" not in path.parts}
    assert all(before[path] == mark for path, mark in kept.items() if path.suffix != ".log")
    score(lab, "again", f"run={trained}", "paths.overwrite=true")
    assert len(built) == 2


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The trainings that were run."""
    found: list[Path] = []
    import boothlab.dreambooth.run as trainings

    original = trainings.execute

    def execute(run: TrainingRun, *more: Any) -> None:
        found.append(run.run_dir)
        original(run, *more)

    monkeypatch.setattr(trainings, "execute", execute)
    return found


def train_words(lab: Lab, *extra: str) -> str:
    """What `train=[…]` takes, of a small run; where it goes and how it is tracked are the scoring's own."""
    own = ("paths.", "tracking.", "trainer.threads")
    words = [word for word in lab.overrides("any", *extra) if not word.startswith(own)]
    return "train=[" + ",".join(f'"{word}"' for word in words) + "]"


@pytest.mark.slow
def test_without_a_run_one_is_trained_for_all_scorings(
    lab: Lab, executed: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(lab, "from-nothing", train_words(lab, "optim.lr=0.2"), "seed=3")
    assert main(["score", "-m", *words, "guidance_scale=1,3"]) == 0
    (run,) = executed
    assert run.parent == lab.folder / "from-nothing" / "train"
    assert (run / ADAPTER).is_file()
    config = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["config"]
    assert (config["seed"], config["trainer"]["threads"], config["tracking"]["wandb"]) == (3, 1, "disabled")
    scored = sorted((lab.folder / "from-nothing" / "score").glob("score-*-s3"))
    assert len(scored) == 2
    assert scores_at(scored[0], 4) != scores_at(scored[1], 4)
    assert "2 of 2 jobs" in capsys.readouterr().err
    alone = lab.train("alone", "optim.lr=0.2", "seed=3")  # that very run, had it been trained by itself
    executed.clear()
    assert (alone / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    assert main(["score", *words, "unet_scale=0.5"]) == 0
    assert executed == []


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(lab, "stopped", train_words(lab))
    with stopped_after(3, monkeypatch):
        assert main(["score", *words]) == 130
    (run,) = (lab.folder / "stopped" / "train").glob("tiny-*")
    assert summary(run)["status"] == "interrupted"
    assert main(["score", *words]) == 0
    assert summary(run)["status"] == "finished"
    (scored,) = (lab.folder / "stopped" / "score").glob("score-*")
    assert scores_at(scored, 4) == scores_at(run, 4)


def test_a_scoring_that_was_interrupted_begins_anew(lab: Lab, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ScoreRun.execute

    def execute(self: ScoreRun) -> None:
        self.tracker.log(0, {metrics.TRAIN_LOSS: 1.0})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreRun, "execute", execute)
        scored = score(lab, "half", f"run={trained}", code=130)
    assert summary(scored)["status"] == "interrupted"
    assert ScoreRun.execute is original
    assert score(lab, "half", f"run={trained}") == scored
    assert summary(scored)["status"] == "finished"
    assert all(metrics.TRAIN_LOSS not in row for _, row in history(scored))
    assert [step for step, row in history(scored) if metrics.variant(metrics.DINO, "dollhouse") in row] == [0, 4]


# --- bad input ----------------------------------------------------------------------------------------------------


def refused(lab: Lab, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["score", *words_of(lab, "refused", *words)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1].startswith("boothlab: error: ")
    return printed[-1].removeprefix("boothlab: error: ")


def test_a_run_that_is_none_is_named(
    lab: Lab, trained: Path, tmp_path: Path, built: list[ScoreRun], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    assert refused(lab, capsys, f"run={missing}") == f"{missing} is not a run folder: it has no manifest.json"
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(trained / "manifest.json", bare)
    expected = f"run={bare}: no LoRA file there; give a run folder, a LoRA folder or a .safetensors file"
    assert refused(lab, capsys, f"run={bare}") == expected
    scored = score(lab, "a-scoring", f"run={trained}")
    assert refused(lab, capsys, f"run={scored}") == f"run={scored}: is not a training run; give the folder of one"
    (bare / "lora").mkdir()
    save_file(load_file(trained / ADAPTER), bare / ADAPTER)  # without the metadata that boothlab writes
    assert refused(lab, capsys, f"run={bare}") == (
        f"{bare / ADAPTER}: does not say after how many steps it was saved; it is not a run's adapter"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["steps=0"], "steps=0: must be at least 1, or null"),
        (["guidance_scale=-1"], "guidance_scale=-1.0: must not be negative, or null"),
        (["image_seeds=[]"], "image_seeds=[]: must name at least one seed and none twice, or null"),
        (["image_seeds=[1,1]"], "image_seeds=[1, 1]: must name at least one seed and none twice, or null"),
        (["prompts=[]"], "prompts=[]: must name a prompt, or null"),
        (["scheduler=dimm"], "scheduler=dimm: expected one of ddim, "),
        (["unet_scal=1"], "there is no key unet_scal; did you mean unet_scale?"),
        (["backbone=sd15"], "there is no key backbone"),
        (["train=['lora.rnak=3']"], "there is no key lora.rnak; did you mean lora.rank?"),
        (["train=['lora.rank=0']"], "lora.rank=0: must be at least 1"),
    ],
)
def test_bad_values_are_named(words: list[str], line: str, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(lab, capsys, *words).startswith(line)


def test_one_bad_scoring_stops_no_other(
    lab: Lab, trained: Path, built: list[ScoreRun], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(lab, "several", f"run={trained},nowhere", "steps=0,2")
    assert main(["score", "-m", *words]) == 1
    assert len(built) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "3 of 4 jobs did not finish" in printed
    assert "nowhere is not a run folder" in printed
    assert "steps=0: must be at least 1, or null" in printed
