"""Lightning's loops as this package runs them: quiet, and ended by signals as a shell expects it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from boothlab.errors import TERMINATED

if TYPE_CHECKING:
    import pytorch_lightning as pl


def quiet_lightning() -> None:
    """Lightning tells of hardware and data loaders; a run's own lines say what a user needs."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")


@contextmanager
def signals_told(trainer: "pl.Trainer") -> Iterator[None]:
    """Ctrl-C is KeyboardInterrupt and SIGTERM exit code 143 again: Lightning makes exit codes 1 and 0 of them."""
    try:
        yield
    except SystemExit as stop:
        if trainer.interrupted and type(stop) is SystemExit and stop.code == 1:
            raise KeyboardInterrupt from None
        if not stop.code:
            raise SystemExit(TERMINATED) from None
        raise
