"""Registers the schemas in Hydra's ConfigStore and the resolvers that name run folders; importing this does it."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import boothlab
from boothlab.compose.naming import folder_name, run_name_of_node
from boothlab.config import SampleConfig, ScoreConfig, TrainConfig
from boothlab.config_edit import EditConfig
from boothlab.errors import UserError

#: the schema of each primary config in conf/, by the config's name
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "score": ScoreConfig,
    "edit": EditConfig,
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


# At import and not in a function: a worker process of a parallel launcher imports this module, and then has them too.
for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema, provider="boothlab")
OmegaConf.register_new_resolver("run_name", run_name_of_node, replace=True)
OmegaConf.register_new_resolver("folder", folder_name, replace=True)
OmegaConf.register_new_resolver("sized", sized, replace=True)
