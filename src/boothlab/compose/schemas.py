"""The schemas of Hydra's ConfigStore, and the resolvers of config files, which importing this registers."""

import importlib.util
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import boothlab
from boothlab.compose.dreambench import dreambench
from boothlab.compose.naming import folder_name, run_name_of_node
from boothlab.config import SampleConfig, ScoreConfig, TrainConfig
from boothlab.config_caption import CaptionConfig
from boothlab.config_clusters import ClustersConfig
from boothlab.config_edit import EditConfig
from boothlab.config_evaluate import EvaluateConfig
from boothlab.config_hotels import HotelsConfig
from boothlab.config_inspect import InspectConfig
from boothlab.errors import UserError

#: the schema of each primary config in conf/, by the config's name
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "score": ScoreConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "caption": CaptionConfig,
    "hotels": HotelsConfig,
    "clusters": ClustersConfig,
    "inspect": InspectConfig,
}


def conf_dir() -> Path:
    """The folder of the config files: inside an installed package, or at the top of a checkout."""
    return _shipped("conf/train.yaml")


def sweeps_dir() -> Path:
    """The folder of the sweeps that ship with the package."""
    return _shipped("sweeps/learning_rate.yaml")


def _shipped(file: str) -> Path:
    package = Path(boothlab.__file__).resolve().parent
    for root in (package, package.parents[1]):
        if (root / file).is_file():
            return (root / file).parent
    raise UserError(f"the config files are missing beside {package}; install boothlab again")


def sized(small: str, full: str, *, _root_: DictConfig) -> str:
    """`${sized:A,B}` in a sweep: A on the miniature that ships with the package, B on a real backbone."""
    return small if OmegaConf.select(_root_, "backbone.source") == "dollhouse" else full


def pick(key: str, table: DictConfig) -> object:
    """`${pick:${method},{lora:1e-3,full:1e-4}}`: what a table says for another key's value; UserError if nothing."""
    name = getattr(key, "name", key)  # an enum, or its name
    if name not in table:
        raise UserError(f"{name}: is not in the table {', '.join(map(str, table))} of the config file")
    return table[name]


def installed(module: str, then: str, otherwise: str) -> str:
    """`${installed:MODULE,A,B}`: A where the package is there, else B; the run's config says which it was."""
    return then if importlib.util.find_spec(module) is not None else otherwise


def register(config_name: str) -> None:
    """Put the schema of a primary config where Hydra finds it, as `<config_name>_schema`.

    One at a time: each takes milliseconds. A worker of a parallel launcher gets the store from the command's process.
    """
    store, name = ConfigStore.instance(), f"{config_name}_schema"
    if f"{name}.yaml" not in store.repo:
        store.store(name=name, node=SCHEMAS[config_name], provider="boothlab")


# At import and not in a function: a worker process of a parallel launcher imports this module, and then has them too.
OmegaConf.register_new_resolver("run_name", run_name_of_node, replace=True)
OmegaConf.register_new_resolver("folder", folder_name, replace=True)
OmegaConf.register_new_resolver("sized", sized, replace=True)
OmegaConf.register_new_resolver("pick", pick, replace=True)
OmegaConf.register_new_resolver("installed", installed, replace=True)
OmegaConf.register_new_resolver("dreambench", dreambench, replace=True)
