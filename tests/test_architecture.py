"""The house rules that a machine can check: arrows point down, no cycles, no attic, rooms of a readable size."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import boothlab

ROOT = Path(boothlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

BASE = {"errors", "files", "seeding", "progress", "quiet", "ranks"}
PARTS = {"dollhouse", "diffusion", "evaluation", "images", "tracking", "cache", "config", "loops", "starting"} | BASE
PARTS |= {"file_hashes"}

#: what each part may import besides itself; a new part needs a line here
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "seeding": {"errors"},
    "progress": {"errors"},
    "quiet": set(),
    "starting": set(),
    "turns": set(),
    "ranks": set(),
    "config": {"errors", "ranks"},
    "cache": {"errors", "files", "turns"},
    "file_hashes": {"errors", "files"},
    "images": BASE,
    "tracking": BASE,
    "evaluation": BASE | {"cache", "images"},
    "diffusion": BASE | {"cache", "config", "images"},
    "dollhouse": {"errors", "files", "seeding"},
    "config_edit": {"config", "errors"},
    "config_evaluate": {"config", "errors"},
    "config_caption": {"config", "errors"},
    "config_clusters": {"config", "errors"},
    "config_hotels": {"config", "errors"},
    "config_inspect": {"config", "errors"},
    "loops": {"errors"},
    "dreambooth": PARTS - {"dollhouse"},
    "editing": (PARTS - {"dollhouse"}) | {"config_edit"},
    "captioning": BASE | {"evaluation", "images", "tracking"},
    "inspecting": BASE | {"config", "config_inspect", "diffusion", "evaluation", "images", "reporting", "tracking"},
    "packing": {"compose", "config", "diffusion", "errors", "turns"},
    "building": PARTS
    | {
        "packing",
        "captioning",
        "config_caption",
        "dreambooth",
        "editing",
        "config_edit",
        "config_evaluate",
        "config_inspect",
        "inspecting",
    },
    "compose": {"config", "config_caption", "config_clusters", "config_edit", "config_evaluate", "config_hotels"}
    | {"config_inspect", "errors", "files", "tracking"},
    "search": BASE | {"config", "reporting", "tracking"},
    "sweeping": {"compose", "config", "errors", "files", "progress", "search", "tracking"},
    "reporting": BASE | {"config", "evaluation", "images", "tracking"},
    "publishing": BASE | {"diffusion", "images", "reporting", "tracking"},
    "rerunning": {"building", "cache", "compose", "config", "config_edit", "diffusion", "images", "tracking"} | BASE,
    "commands": PARTS
    | {
        "building",
        "compose",
        "config_caption",
        "config_edit",
        "config_evaluate",
        "config_inspect",
        "dreambooth",
        "publishing",
        "reporting",
        "rerunning",
        "search",
        "sweeping",
    }
    | {"captioning", "config_clusters", "config_hotels"},
    "cli": {"errors", "starting"},
    "__main__": {"cli"},
}
#: single modules that may do more, each with its reason
EXTRA = {
    "dollhouse.score": {"evaluation"},  # scores the miniatures with the metrics they exist for
    "compose.dreambench": {"images"},  # a subject's class and prompts are in the data set
    "evaluation.edit_metrics": {"tracking"},  # gives each score its metric key
    "editing.dollhouse_tasks": {"dollhouse"},  # its tasks are drawn by the renderer
}
#: longer than the rule allows, each with its reason
LONG = {"config.py": 1050}  # every setting in one place is the point of it


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, *, lazy: bool) -> set[str]:
    """The boothlab modules a module imports; with `lazy` also those inside functions and `if TYPE_CHECKING`."""
    found: set[str] = set()
    nodes = list(ast.walk(tree)) if lazy else list(getattr(tree, "body", []))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("boothlab.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "boothlab":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {name.removeprefix("boothlab").removeprefix(".") for name in found}


MODULES = {f"boothlab.{name_of(path)}" for path in FILES}
TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.mark.parametrize("module", [name for name in TREES if name])
def test_arrows_point_down(module: str) -> None:
    part = module.split(".")[0]
    assert part in MAY_IMPORT, f"give {part} a line in MAY_IMPORT"
    allowed = MAY_IMPORT[part] | EXTRA.get(module, set()) | {part}
    others = {name.split(".")[0] for name in imported(TREES[module], lazy=True)} - {""}
    assert others <= allowed


def test_the_layers_themselves_have_no_cycle() -> None:
    remaining = dict(MAY_IMPORT)
    while free := [part for part, below in remaining.items() if not below & remaining.keys()]:
        for part in free:
            del remaining[part]
    assert not remaining


def test_no_module_is_in_a_cycle() -> None:
    graph = {module: imported(tree, lazy=False) & TREES.keys() - {""} for module, tree in TREES.items()}
    while free := [module for module, below in graph.items() if not below & graph.keys()]:
        for module in free:
            del graph[module]
    assert not graph


def test_parts_get_their_own_config_and_never_the_root() -> None:
    for module, tree in TREES.items():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if "TrainConfig" in names:
            assert module.split(".")[0] in {"building", "commands", "compose"}, module


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
    assert text.count("\n") <= LONG.get(str(path.relative_to(ROOT)), 350)
    assert ast.get_docstring(TREES[name_of(path)])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("boothlab.cli", {"torch", "hydra", "omegaconf", "diffusers", "wandb", "rich", "numpy"}),
        ("boothlab.commands.train", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.sample", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.sweep", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.caption", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning", "PIL"}),
        ("boothlab.commands.edit", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.hotels", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning", "urllib3"}),
        ("boothlab.commands.clusters", {"torch", "diffusers", "transformers", "wandb", "numpy", "sklearn", "kmodes"}),
        ("boothlab.commands.inspect", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.score", {"torch", "diffusers", "transformers", "wandb", "pytorch_lightning"}),
        ("boothlab.commands.convert", {"torch", "hydra", "diffusers", "transformers", "wandb", "huggingface_hub"}),
        ("boothlab.commands.publish", {"torch", "hydra", "diffusers", "transformers", "wandb", "huggingface_hub"}),
        ("boothlab.commands.report", {"torch", "hydra", "diffusers", "transformers", "wandb", "pyarrow", "scipy"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
