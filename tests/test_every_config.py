"""Every file in conf/ composes to a valid typed config, every field has its doc, and a run's hash is stable."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from boothlab import (
    config,
    config_caption,
    config_clusters,
    config_edit,
    config_evaluate,
    config_hotels,
    config_inspect,
)
from boothlab.compose.field_docs import field_docs, section_type, sections, walk
from boothlab.compose.naming import identity, run_name
from boothlab.compose.run import compose, group_options
from boothlab.compose.schemas import SCHEMAS, conf_dir
from boothlab.compose.typed import from_resolved, leaves, load
from boothlab.config import ADDED, NOT_HASHED, BackboneConfig, SampleConfig, ScoreConfig, SearchConfig, TrainConfig
from boothlab.config_caption import CaptionConfig
from boothlab.config_edit import AdapterConfig, EditConfig
from boothlab.errors import UserError

CONF = conf_dir()
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
EVERYTHING = {**vars(config), **vars(config_caption), **vars(config_edit), **vars(config_inspect)}
EVERYTHING |= {**vars(config_clusters), **vars(config_evaluate), **vars(config_hotels)}
DATACLASSES = [one for one in EVERYTHING.values() if isinstance(one, type) and dataclasses.is_dataclass(one)]
NEEDED = {
    "folder": ["subject.images=photos", "subject.class_noun=dog"],
    "dreambench": ["subject.images=dreambench:dog"],
    "dreambooth": ["subject=dog"],
}
#: the groups of `boothlab edit`, and what it needs; the others are those of `boothlab train`
CAPTIONING = ("models",)
EDITING, TO_EDIT = ("editors",), ["method=sdedit", "data.images=photos"]

MINIMAL: dict[str, Any] = {
    "seed": 7,
    "name": "golden",
    "backbone": {"name": "golden", "source": "dollhouse", "resolution": 64},
    "subject": {"images": "photos", "class_noun": "dog"},
    "encoders": {"clip": "dollhouse", "dino": "dollhouse"},
    "trainer": {"max_steps": 20, "checkpoint_every": 10},
    "evaluation": {"prompts": ["a {token} {class} on the beach"]},
}
MINIMAL_SCORING: dict[str, Any] = {"seed": 7, "name": "golden", "run": "outputs/train/RUN", "unet_scale": 0.5}
MINIMAL_EDIT: dict[str, Any] = {
    "seed": 7,
    "name": "golden",
    "method": "sdedit",
    "backbone": MINIMAL["backbone"],
    "encoders": MINIMAL["encoders"],
}
MINIMAL_CAPTION: dict[str, Any] = {
    "seed": 7,
    "name": "golden",
    "images": "photos",
    "labels": ["dollhouse"],
    "captioner": "dollhouse",
    "clip": "dollhouse",
}
HASHED = (TrainConfig, ScoreConfig, EditConfig, CaptionConfig)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes_to_a_valid_config(group: str, option: str) -> None:
    command, needed = ("edit", TO_EDIT) if group in EDITING else ("train", NEEDED.get(option, []))
    if group in CAPTIONING:
        command, needed = "caption", ["images=photos"]
    typed, resolved = load(compose(command, [f"{group}={option}", *needed]), SCHEMAS[command])
    assert isinstance(typed, SCHEMAS[command])
    written = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    written.pop("defaults", None)
    top = group in ("recipe", "memory", "prompt_set", *EDITING, *CAPTIONING)
    tree = dict(leaves(resolved if top else resolved[group]))
    for key, value in leaves(written):
        if value != "???" and key != "data.images" and not str(value).startswith("${"):
            assert tree[key] == (float(value) if isinstance(tree[key], float) else value), key


def test_every_primary_config_has_a_schema_and_every_group_is_offered() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(SCHEMAS)
    offered = group_options("train") | group_options("edit") | group_options("caption")
    assert sorted((group, option) for group, options in offered.items() for option in options) == OPTIONS


def test_a_backbone_brings_the_recipe_and_the_encoders_that_suit_it() -> None:
    small, _ = load(compose("train"), TrainConfig)
    large, _ = load(compose("train", ["backbone=sd15"]), TrainConfig)
    assert (small.encoders.clip, large.encoders.clip) == ("dollhouse", "openai/clip-vit-base-patch32")
    assert (large.trainer.max_steps, large.optim.lr, large.lora.rank, len(large.evaluation.prompts)) == (
        1000,
        1e-4,
        16,
        25,
    )
    mixed, _ = load(
        compose("train", ["backbone=sdxl", "recipe=dollhouse", "encoders=standard", "lora.rank=3"]), TrainConfig
    )
    assert (mixed.backbone.name, mixed.trainer.max_steps) == ("sdxl", small.trainer.max_steps)
    assert (mixed.encoders.clip, mixed.lora.rank) == ("openai/clip-vit-base-patch32", 3)
    moved, _ = load(compose("train", ["backbone=sd15", "backbone.source=/models/mine"]), TrainConfig)
    assert (moved.backbone.source, moved.trainer.max_steps) == ("/models/mine", 1000)


def test_sample_takes_a_backbone_or_leaves_it_to_the_run() -> None:
    typed, _ = load(compose("sample", ["prompt=a dog"]), SampleConfig)
    assert typed.backbone is None
    typed, _ = load(compose("sample", ["prompt=a dog", "backbone=sd15"]), SampleConfig)
    assert isinstance(typed.backbone, BackboneConfig)
    assert typed.backbone.resolution == 512


@pytest.mark.parametrize("schema", DATACLASSES, ids=lambda schema: schema.__name__)
def test_every_field_of_every_dataclass_has_a_doc(schema: type) -> None:
    assert (schema.__doc__ or "").splitlines()[0].endswith(".")
    hints = {one.name: section_type(one.type) for one in dataclasses.fields(schema)}
    undocumented = [name for name, below in hints.items() if below is None and name not in field_docs(schema)]
    assert undocumented == []


def test_every_dataclass_is_reached_from_a_command() -> None:
    schemas = [*SCHEMAS.values(), SearchConfig]  # the last is of `boothlab sweep NAME search=…`
    used = {dataclass for schema in schemas for dataclass in [schema, *_below(schema)]}
    assert used | {AdapterConfig} == set(DATACLASSES)  # a list of those is no section
    assert list(sections(SampleConfig)) == ["", "sampler", "backbone"]


def _below(schema: type) -> list[type]:
    found = [below for one in dataclasses.fields(schema) if (below := section_type(one.type)) is not None]
    return [*found, *(deeper for one in found for deeper in _below(one))]


def test_what_is_not_hashed_exists() -> None:
    keys = {info.key for schema in HASHED for info in walk(schema)}
    keys |= {section for schema in HASHED for section in sections(schema)}
    assert {key.partition("=")[0] for key in NOT_HASHED} <= keys


def test_keys_that_came_later_are_left_out_at_their_defaults_and_only_there() -> None:
    _, resolved = from_resolved(MINIMAL, TrainConfig)
    tree = dict(leaves(resolved))  # of training alone: another command's default may have changed since
    for key, _, value in (one.partition("=") for one in ADDED if one.partition("=")[0] in tree):
        assert value == (tree[key] if isinstance(tree[key], str) else json.dumps(tree[key])), key
    older = {key: value for key, value in resolved.items() if key not in ("method", "full", "inversion")}
    older["lora"] = {key: value for key, value in resolved["lora"].items() if key != "variant"}
    older["optim"] = {key: value for key, value in resolved["optim"].items() if key != "optimizer"}
    older["trainer"] = {key: value for key, value in resolved["trainer"].items() if key != "offload"}
    assert identity(older) == identity(resolved)
    assert identity({**resolved, "method": "full"}) != identity(resolved)


def test_the_hash_is_golden() -> None:
    _, resolved = from_resolved(MINIMAL, TrainConfig)
    assert run_name(resolved) == "golden-ec471991-s7"
    _, resolved = from_resolved(MINIMAL_SCORING, ScoreConfig)
    assert run_name(resolved) == "golden-d5bc30c1-s7"
    _, resolved = from_resolved(MINIMAL_EDIT, EditConfig)
    assert run_name(resolved) == "golden-8c5b705e-s7"
    _, resolved = from_resolved({**MINIMAL_EDIT, "data": {"captions": "full"}}, EditConfig)
    assert run_name(resolved) == "golden-5549f0a4-s7"  # what runs were made with before there was a choice
    _, resolved = from_resolved(MINIMAL_CAPTION, CaptionConfig)
    assert run_name(resolved) == "golden-869b25e4-s7"


@pytest.mark.parametrize(
    ("minimal", "schema"),
    [
        (MINIMAL, TrainConfig),
        (MINIMAL_SCORING, ScoreConfig),
        (MINIMAL_EDIT, EditConfig),
        (MINIMAL_CAPTION, CaptionConfig),
    ],
)
def test_the_hash_sees_every_key_that_can_change_a_result_and_no_other(minimal: dict[str, Any], schema: type) -> None:
    _, resolved = from_resolved(minimal, schema)
    before = identity(resolved)[0]
    for info in walk(schema):
        changed = _with(resolved, info.key.split("."), "something else")
        excluded = any(f"{info.key}.".startswith(f"{key}.") for key in (*NOT_HASHED, "seed"))
        assert (identity({**changed, "seed": 7})[0] == before) == excluded, info.key


def _with(tree: dict[str, Any], path: list[str], value: object) -> dict[str, Any]:
    head, *rest = path
    return {**tree, head: _with(tree[head], rest, value) if rest else value}


def test_a_saved_config_loads_as_it_was_saved() -> None:
    typed, resolved = from_resolved(MINIMAL, TrainConfig)
    again, resolved_again = from_resolved(resolved, TrainConfig)
    assert (again, resolved_again) == (typed, resolved)
    assert typed.subject.instance_prompt == "a photo of a sks dog"


def test_conf_is_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "boothlab"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "train.yaml").touch()
    monkeypatch.setattr("boothlab.__file__", str(package / "__init__.py"))
    assert conf_dir() == package / "conf"
    (package / "conf" / "train.yaml").unlink()
    with pytest.raises(UserError, match="config files are missing"):
        conf_dir()
