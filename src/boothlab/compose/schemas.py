"""Registers the schemas in Hydra's ConfigStore and the resolvers that name run folders; importing this does it."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import boothlab
from boothlab.compose.naming import folder_name, run_name_of_node
from boothlab.config import SampleConfig, TrainConfig
from boothlab.errors import UserError

#: the schema of each primary config in conf/, by the config's name
SCHEMAS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig}


def conf_dir() -> Path:
    """The folder of the config files: inside an installed package, or at the top of a checkout."""
    package = Path(boothlab.__file__).resolve().parent
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"the config files are missing beside {package}; install boothlab again")


# At import and not in a function: a worker process of a parallel launcher imports this module, and then has them too.
for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema, provider="boothlab")
OmegaConf.register_new_resolver("run_name", run_name_of_node, replace=True)
OmegaConf.register_new_resolver("folder", folder_name, replace=True)
