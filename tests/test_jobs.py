"""Planning a multirun: which jobs it has, and that composing them fast gives what Hydra itself composes."""

import functools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from boothlab.compose import jobs as planning
from boothlab.compose.jobs import Multirun, PlannedJob, check_jobs
from boothlab.compose.naming import run_name
from boothlab.compose.run import compose, run
from boothlab.compose.schemas import SCHEMAS, sweeps_dir
from boothlab.config import SweepConfig
from boothlab.errors import UserError
from boothlab.reporting.runs import SCORES

SWEEPS = {path.stem: path for path in sorted(sweeps_dir().glob("*.yaml"))}
SEEDS = ["0", "1", "2"]
RANKS = {"dollhouse": ["1", "4", "16"], "sd15": ["4", "16", "64"]}
SWITCH = ["False", "True"]  # as Hydra writes false,true

METHODS = [
    "copy",
    "regenerate",
    "sdedit",
    "controlnet_canny",
    "controlnet_depth",
    "controlnet",
    "t2i_adapter_canny",
    "t2i_adapter_depth",
    "instruct_pix2pix",
    "inpaint",
    "ddim_inversion",
]
SHIPPED = ("bear_plushie", "dog", "robot_toy")
#: without an axis: seeds and subjects are no values that one would compare with the first
NO_AXIS = ("seeds", "dreambench")
EDITS = (
    "control_scale",
    "edit_methods",
    "edit_search",
    "instruct_guidance",
    "one_change_at_a_time",
    "sdedit_strength",
)

#: jobs and varied values of each sweep, on the miniature and on a real backbone
PLANS: dict[str, dict[str, dict[str, list[str]]]] = {
    "captions": {size: {"seed": SEEDS, "subject.caption_source": ["null", "sidecar", "tags"]} for size in RANKS},
    "class_prompt": {
        "dollhouse": {
            "seed": SEEDS,
            "lora.rank": RANKS["dollhouse"],
            "prior.class_prompt": ["'a photo of a robot'", "'a photo of an orange robot'"],
        },
        "sd15": {
            "seed": SEEDS,
            "lora.rank": RANKS["sd15"],
            "prior.class_prompt": ["'a photo of a robot'", "'a photo of one whole robot'"],
        },
    },
    "control_scale": {
        size: {
            "method": ["controlnet_canny", "controlnet_depth"],
            "control_scale": ["0.25", "0.5", "0.75", "1.0", "1.5"],
        }
        for size in RANKS
    },
    "dreambench": {size: {"subject.images": [f"'dreambench:{name}'" for name in SHIPPED]} for size in RANKS},
    "edit_methods": {size: {"method": METHODS} for size in RANKS},
    "edit_search": {size: {"strength": ["0.3", "0.5", "0.7", "0.9"], "steps": ["10", "20", "40"]} for size in RANKS},
    "guidance": {size: {"guidance_scale": ["1", "2", "4", "8"]} for size in RANKS},
    "instruct_guidance": {
        size: {"image_guidance_scale": ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0", "2.2"]} for size in RANKS
    },
    "one_change_at_a_time": {
        size: {
            "method": ["sdedit", "instruct_pix2pix"],
            "data.edits": ["[at_dusk,at_night]", "[lamp_on]", "[carpet_red]"],
        }
        for size in RANKS
    },
    "sdedit_strength": {size: {"strength": [f"0.{tenths}" for tenths in range(2, 10)]} for size in RANKS},
    "learning_rate": {
        "dollhouse": {"seed": SEEDS, "optim.lr": ["3e-05", "0.0001", "0.0003", "0.001"]},
        "sd15": {"seed": SEEDS, "optim.lr": ["1e-06", "1e-05", "0.0001", "0.001"]},
    },
    "methods": {size: {"seed": SEEDS, "method": ["full", "lora", "pivotal", "textual_inversion"]} for size in RANKS},
    "lora_rank": {
        "dollhouse": {"seed": SEEDS, "lora.rank": ["1", "4", "16", "64"]},
        "sd15": {"seed": SEEDS, "lora.rank": ["4", "16", "64", "256"]},
    },
    "lora_scale": {
        size: {"text_encoder_scale": ["0.1", "0.5", "1.0"], "unet_scale": ["0.25", "0.5", "0.75", "1.0"]}
        for size in RANKS
    },
    "prior_preservation": {
        size: {"seed": SEEDS, "lora.rank": ranks, "prior.enabled": SWITCH} for size, ranks in RANKS.items()
    },
    "seeds": {size: {"seed": [*"01234567"]} for size in RANKS},
    "steps": {
        "dollhouse": {"seed": SEEDS, "trainer.max_steps": ["50", "100", "200", "400"]},
        "sd15": {"seed": SEEDS, "trainer.max_steps": ["250", "500", "1000", "2000"]},
    },
    "text_encoder": {
        size: {"seed": SEEDS, "lora.rank": ranks, "lora.train_text_encoder": SWITCH} for size, ranks in RANKS.items()
    },
    "text_encoder_prior": {
        size: {"seed": SEEDS, "lora.rank": ranks, "lora.train_text_encoder": SWITCH} for size, ranks in RANKS.items()
    },
}
SCORINGS = ("guidance", "lora_scale")
SIZES = ["dollhouse", pytest.param("sd15", marks=pytest.mark.slow)]


def nothing(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> None:
    raise AssertionError("planning starts no job")


def plan(*argv: str, config_name: str = "train", search_in: Path | None = None) -> Multirun:
    """The jobs that a command line comes to; none of them is started."""
    found: list[Multirun] = []

    def keep(multirun: Multirun) -> int:
        found.append(multirun)
        return 7

    assert run(config_name, nothing, ["-m", *argv], keep, search_in) == 7
    return found[0]


@functools.cache
def plan_sweep(name: str, *argv: str) -> Multirun:
    """The jobs of a sweep that ships with the package."""
    return plan("--config-name", name, *argv, config_name=primary(name), search_in=sweeps_dir())


def primary(name: str) -> str:
    """The command that a sweep's jobs are of."""
    return "score" if name in SCORINGS else "edit" if name in EDITS else "train"


def plan_size(name: str, size: str) -> Multirun:
    """The same on a backbone; a scoring has it in the training it begins with."""
    if size == "dollhouse":
        return plan_sweep(name)
    if name in EDITS:
        return plan_sweep(name, "backbone=sd15", "data.images=photos")
    return plan_sweep(name, "train=['backbone=sd15']" if name in SCORINGS else "backbone=sd15")


def settled(multirun: Multirun) -> dict[str, PlannedJob]:
    """The jobs by the name of their run folder."""
    return {job.run_dir.name: job for job in multirun.jobs}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, in which planning leaves nothing; Hydra's logging set-up is undone."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield folder
    assert list(folder.iterdir()) == []
    root.handlers[:], root.level = before


# --- the sweeps that ship -----------------------------------------------------------------------------------------


def test_every_sweep_has_a_plan_here() -> None:
    assert set(PLANS) == set(SWEEPS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLANS)
def test_a_sweep_has_the_jobs_that_its_values_make(name: str, size: str) -> None:
    multirun = plan_size(name, size)
    expected = PLANS[name][size]
    assert multirun.params == expected
    count = 1
    for values in expected.values():
        count *= len(values)
    assert len(multirun.jobs) == len(settled(multirun)) == count
    assert multirun.launcher == "BasicLauncher"
    schema = SCHEMAS[primary(name)]
    assert [job.mistake for job in check_jobs(multirun.jobs, schema)] == [None] * count
    experiment = name if name in (*SCORINGS, *EDITS, "steps", "dreambench") else "study"
    assert multirun.folder == Path("outputs") / experiment
    assert {job.run_dir.parent for job in multirun.jobs} == {multirun.folder}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_says_what_it_is(name: str) -> None:
    multirun = plan_sweep(name)
    about = SweepConfig(**multirun.settings)
    assert (about.name, about.axis is None) == (name, name in NO_AXIS)
    assert about.axis in multirun.params or name in NO_AXIS
    assert about.title and about.about.endswith(".")
    assert set(about.expect) <= set(SCORES)
    assert {job.resolved["tracking"]["group"] for job in multirun.jobs} == {name}
    first = SWEEPS[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert "?" in first or name == "guidance" or name in ("lora_scale", "text_encoder_prior")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("lora_rank", "text_encoder", 9),
        ("lora_rank", "prior_preservation", 9),
        ("lora_rank", "text_encoder_prior", 9),
        ("text_encoder", "prior_preservation", 9),
        ("text_encoder", "text_encoder_prior", 9),
        ("prior_preservation", "text_encoder_prior", 9),
        ("prior_preservation", "class_prompt", 9),
        ("learning_rate", "lora_rank", 3),
        ("learning_rate", "seeds", 3),
        ("lora_rank", "captions", 3),
        ("captions", "seeds", 3),
        ("steps", "lora_rank", 0),
    ],
)
def test_one_setting_is_one_run_in_every_sweep_of_the_study(first: str, second: str, shared: int, size: str) -> None:
    one, other = settled(plan_size(first, size)), settled(plan_size(second, size))
    common = one.keys() & other.keys()
    assert len(common) == shared
    for name in common:
        mine, theirs = dict(one[name].resolved), dict(other[name].resolved)
        for key in ("sweep", "tracking"):
            mine.pop(key), theirs.pop(key)
        assert mine == theirs
        assert one[name].run_dir == other[name].run_dir


def test_what_differs_between_two_jobs_is_another_run() -> None:
    by_prompt = plan_sweep("class_prompt")
    prompts = {job.resolved["prior"]["class_prompt"] for job in by_prompt.jobs}
    assert prompts == {"a photo of a robot", "a photo of an orange robot"}
    both = plan_sweep("text_encoder_prior")
    switches = {(job.resolved["lora"]["train_text_encoder"], job.resolved["prior"]["enabled"]) for job in both.jobs}
    assert switches == {(False, False), (True, True)}
    steps = plan_sweep("steps", "backbone=sd15")
    assert {job.resolved["trainer"]["checkpoint_every"] for job in steps.jobs} == {250}
    assert {job.resolved["optim"]["schedule"] for job in steps.jobs} == {"cosine"}


def test_the_miniature_s_study_is_small_and_the_same_from_every_launcher() -> None:
    for name in ("learning_rate", "captions", "seeds"):
        (trainer,) = {json.dumps(job.resolved["trainer"]) for job in plan_sweep(name).jobs}
        assert (json.loads(trainer)["max_steps"], json.loads(trainer)["threads"]) == (150, 1)
    large = plan_sweep("learning_rate", "backbone=sd15").jobs[0].resolved
    assert (large["trainer"]["max_steps"], large["trainer"]["threads"], large["lora"]["rank"]) == (1000, None, 16)


# --- values -------------------------------------------------------------------------------------------------------


def test_values_typed_take_the_place_of_the_file_s() -> None:
    multirun = plan_sweep("lora_rank", "lora.rank=2,8", "seed=5")
    assert multirun.params == {"lora.rank": ["2", "8"]}
    found = [(job.resolved["lora"]["rank"], job.resolved["seed"]) for job in multirun.jobs]
    assert found == [(2, 5), (8, 5)]
    more = plan_sweep("lora_rank", "optim.lr=1e-3,1e-4", "lora.rank=2")
    assert more.params == {"seed": SEEDS, "optim.lr": ["0.001", "0.0001"]}
    assert {job.resolved["lora"]["rank"] for job in more.jobs} == {2}
    assert len(more.jobs) == 6


def test_ranges_and_choices_are_written_out() -> None:
    assert plan("seed=range(3)", "lora.rank=choice(2,4)").params == {"seed": ["0", "1", "2"], "lora.rank": ["2", "4"]}
    assert [job.resolved["seed"] for job in plan("seed=range(2,8,2)").jobs] == [2, 4, 6]


def test_jobs_come_in_the_order_of_their_values() -> None:
    words = [job.overrides for job in plan("lora.rank=4,2", "seed=0,1", "experiment=x").jobs]
    assert words == [(f"lora.rank={rank}", f"seed={seed}", "experiment=x") for rank in (4, 2) for seed in (0, 1)]


def test_a_run_folder_has_the_name_of_the_single_run() -> None:
    multirun = plan("lora.rank=3,5", "seed=4", "subject=bear", "paths.outputs=elsewhere", "experiment=my study")
    for job in multirun.jobs:
        node = compose("train", job.overrides)
        resolved: Any = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
        assert job.run_dir == Path("elsewhere") / "my-study" / run_name(resolved)
    assert multirun.folder == Path("elsewhere") / "my-study"


def test_jobs_that_come_to_the_same_run_are_one() -> None:
    multirun = plan("lora.rank=2,2,4", "tracking.group=a,b", "optim.lr=1e-3,0.001")
    assert [job.overrides for job in multirun.jobs] == [
        ("lora.rank=2", "tracking.group=a", "optim.lr=0.001"),
        ("lora.rank=4", "tracking.group=a", "optim.lr=0.001"),
    ]
    assert multirun.params["lora.rank"] == ["2", "2", "4"]


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_a_mistake_in_every_job_is_the_command_line_s() -> None:
    for word, line in [
        ("trainer.max_stpes=3", "did you mean trainer.max_steps?"),
        ("backbone=sd9", "no such option"),
        ("lora.rank=x", "lora.rank=x: expected whole number"),
        ("foo[=1", "cannot read 'foo"),
    ]:
        with pytest.raises(UserError, match=line.replace("?", r"\?")):
            plan("seed=0,1", word)


def test_a_mistake_in_one_job_is_that_job_s() -> None:
    multirun = plan("lora.rank=0,4", "backbone=dollhouse,sd9", "seed=1")
    lines = [job.mistake for job in check_jobs(multirun.jobs, SCHEMAS["train"])]
    missing = "backbone=sd9: no such option; backbone is one of dollhouse, sd15, sd21, sdxl"
    assert lines == ["lora.rank=0: must be at least 1", missing, None, missing]
    assert plan("subject=folder,robot").jobs[0].mistake is not None
    typos = plan("trainer.max_stpes=1,2").jobs
    expected = "there is no key trainer.max_stpes; did you mean trainer.max_steps?"
    assert [job.mistake for job in typos] == [expected, expected]
    assert len({job.run_dir for job in typos}) == 2


def test_a_config_cannot_name_code_to_run_in_one_job_either() -> None:
    with pytest.raises(UserError, match="cannot name code to run"):
        plan("seed=0,1", "+lora._target_=os.system")
    good, bad = check_jobs(plan("+lora.x=1,{_target_:os.abort}").jobs, SCHEMAS["train"])
    assert good.mistake == "there is no key lora.x; did you mean lora?"
    assert "os.abort" in (bad.mistake or "")


def test_a_sweeper_that_chooses_as_it_goes_is_not_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "BASIC_SWEEPER", "another one")
    ran = []

    def body(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> None:
        ran.append((config.seed, one_of_many))

    def never(multirun: Multirun) -> int:
        raise AssertionError("nothing was to be planned")

    assert run("train", body, ["-m", "seed=0,1", f"paths.outputs={tmp_path}"], never) == 0
    assert ran == [(0, True), (1, True)]


def test_hydra_s_own_settings_reach_every_job_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The launcher gives them to each job, so they are not among the job's own: a key cannot be added twice."""
    seen = []

    def body(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> None:
        seen.append((os.environ.get("BOOTHLAB_TEST"), run_dir))

    words = ["-m", "+hydra.job.env_set.BOOTHLAB_TEST=${hydra:job.num}", f"hydra.sweep.dir={tmp_path / 'x'}", "seed=3,4"]

    def launch(multirun: Multirun) -> int:
        assert [job.overrides for job in multirun.jobs] == [("seed=3",), ("seed=4",)]
        assert multirun.folder == tmp_path / "x"
        outcomes = multirun.launch(multirun.jobs)
        assert [run_dir for _, run_dir in seen] == [job.run_dir for job in multirun.jobs]
        return max(outcome.code for outcome in outcomes)

    assert run("train", body, words, launch) == 0
    assert [number for number, _ in seen] == ["0", "1"]


# --- composing fast -----------------------------------------------------------------------------------------------

SETS: dict[str, list[str]] = {
    "nothing": [],
    "numbers": ["lora.rank=3", "optim.lr=1e-3", "seed=5", "prior.weight=2", "lora.alpha=7"],
    "groups": ["backbone=sd15", "subject=bear", "lora.rank=3"],
    "a group after the values it sets": ["trainer.max_steps=77", "recipe=sd15", "lora.rank=2"],
    "groups apart": ["backbone=sdxl", "recipe=dollhouse", "encoders=standard"],
    "null": ["tracking.group=null", "lora.alpha=null", "paths.cache=null", "optim.grad_clip=null"],
    "lists": ["evaluation.seeds=[4,5]", "evaluation.prompts=['a {token} {class}, big','it is']", "tracking.tags=[]"],
    "quotes": ["name='my, run'", 'subject.instance_prompt="a sks robot\'s bed"', "prior.class_prompt='a [robot]'"],
    "interpolations": ["name=${subject.class_noun}-${lora.rank}", "prior.enabled=${lora.train_text_encoder}"],
    "interpolation to what follows": ["prior.num_class_images=${lora.rank}", "lora.rank=9"],
    "enums": ["backbone.precision=bf16", "optim.schedule=cosine", "data.crop=center"],
    "twice the same": ["lora.rank=2", "lora.rank=5", "seed=1", "seed=2"],
    "a dict": ["+sweep.expect={clip_i:rises}", "optim={lr:0.5,weight_decay:0.1}"],
    "added and forced": ["+sweep.expect.dino=falls", "++lora.rank=6", "lora.dropout=0.1"],
    "hydra's own": ["hydra.job.chdir=false", "hydra/job_logging=disabled", "lora.rank=4", "hydra.verbose=true"],
    "other folders": ["paths.outputs=out", "experiment=my study", "hydra.sweep.dir=elsewhere"],
    "unicode and blanks": ["subject.images='ein Häuschen'", "name='家'", "tracking.project=a b"],
    "booleans as words": ["data.flip=true", "lora.train_text_encoder=false", "subject.captions=on"],
}


@pytest.fixture(scope="module")
def composers() -> Iterator[tuple[Any, Any]]:
    """The planner's composer, and Hydra's own way from the command line to the job's part of the config."""
    from boothlab.compose.run import _hydra, _job_part, _parse

    with _hydra(_parse((), "train")) as hydra:
        fast = planning._Composer(hydra, "train")

        def slow(words: list[str]) -> DictConfig:
            from hydra.types import RunMode

            return _job_part(hydra.compose_config("train", words, RunMode.RUN))

        yield fast, slow


def assert_alike(one: DictConfig, other: DictConfig) -> None:
    """The same nodes before and after interpolations are filled in, with the same types behind them."""
    for resolve in (False, True):
        mine, theirs = (OmegaConf.to_container(node, resolve=resolve) for node in (one, other))
        assert mine == theirs
        assert list(one) == list(other)
    assert OmegaConf.get_type(one) == OmegaConf.get_type(other)
    assert repr(OmegaConf.to_container(one, resolve=True)) == repr(OmegaConf.to_container(other, resolve=True))


@pytest.mark.parametrize("name", SETS)
def test_composing_fast_gives_what_hydra_composes(name: str, composers: tuple[Any, Any]) -> None:
    fast, slow = composers
    node, folder = fast(SETS[name])
    assert_alike(node, slow(SETS[name]))
    assert folder == Path({"other folders": "elsewhere"}.get(name, "outputs/train"))
    again, _ = fast(SETS[name])  # what one job sets does not stay for the next
    assert_alike(again, node)
    assert_alike(fast([])[0], slow([]))


@pytest.mark.parametrize("name", ["numbers", "groups", "interpolations", "quotes"])
def test_the_command_s_own_composition_agrees(name: str, composers: tuple[Any, Any]) -> None:
    assert_alike(composers[0](SETS[name])[0], compose("train", SETS[name]))


def test_what_is_wrong_for_hydra_is_wrong_when_composed_fast(composers: tuple[Any, Any]) -> None:
    for words in (["lora.rank=x"], ["lora.rnak=1"], ["backbone=sd9"], ["lora=3"], ["~lora.xyzzy"], ["foo[=1"]):
        messages = []
        for composer in composers:
            with pytest.raises(Exception) as caught:
                composer(words)
            messages.append(str(planning.explain(caught.value, SCHEMAS["train"])))
        assert messages[0] == messages[1]


def test_only_a_choice_of_groups_is_composed_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.hydra import Hydra

    calls = []
    original = Hydra.compose_config

    def counted(self: Hydra, name: str, overrides: list[str], *more: Any, **named: Any) -> DictConfig:
        calls.append(overrides)
        return original(self, name, overrides, *more, **named)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    few = plan("seed=0,1", "subject=robot,bear")
    composed = len(calls)
    assert len(few.jobs) == 4
    calls.clear()
    many = plan("seed=range(3)", "lora.rank=2,4", "subject=robot,bear")
    assert (len(many.jobs), len(calls)) == (12, composed)


TEXT = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="'\\$"), min_size=1, max_size=12
).filter(lambda text: text.strip() == text)
FIELDS = {
    "lora.rank": st.integers(1, 300).map(str),
    "seed": st.integers(0, 10**6).map(str),
    "optim.lr": st.floats(1e-9, 1.0).map(repr),
    "optim.grad_clip": st.one_of(st.just("null"), st.floats(0.1, 9.0).map(repr)),
    "lora.train_text_encoder": st.sampled_from(["true", "false", "True", "off"]),
    "prior.enabled": st.sampled_from(["true", "false", "${lora.train_text_encoder}"]),
    "name": st.one_of(TEXT.map(lambda text: f"'{text}'"), st.just("${backbone.name}-${seed}")),
    "tracking.group": st.one_of(st.just("null"), TEXT.map(lambda text: f"'{text}'")),
    "evaluation.seeds": st.lists(st.integers(0, 99), max_size=4).map(lambda seeds: json.dumps(seeds)),
    "evaluation.prompts": st.lists(TEXT, min_size=1, max_size=3).map(
        lambda texts: "[" + ",".join(f"'{text}'" for text in texts) + "]"
    ),
    "backbone.precision": st.sampled_from(["fp32", "bf16"]),
    "backbone": st.sampled_from(["dollhouse", "sd15", "sdxl"]),
    "recipe": st.sampled_from(["dollhouse", "sd15"]),
    "subject": st.sampled_from(["robot", "bear", "folder"]),
    "encoders": st.sampled_from(["standard", "dollhouse"]),
    "+tracking.tags": st.just("[]"),
    "hydra.job.name": st.just("x"),
}
WORDS = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(lambda key: FIELDS[key].map(lambda value: f"{key}={value}")),
    max_size=7,
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_composing_fast_gives_what_hydra_composes_whatever_is_typed(
    words: list[str], composers: tuple[Any, Any]
) -> None:
    fast, slow = composers
    try:
        expected = slow(words)
    except Exception as error:
        with pytest.raises(type(error)) as caught:
            fast(words)
        explained = [str(planning.explain(one, SCHEMAS["train"])) for one in (caught.value, error)]
        assert explained[0] == explained[1]
        return
    node, _ = fast(words)
    mine, theirs = (OmegaConf.to_container(one, resolve=False) for one in (node, expected))
    assert mine == theirs
    assert repr(mine) == repr(theirs)
