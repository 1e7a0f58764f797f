"""What several test modules share."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail. On CI the examples are the same every time, at home they wander.
settings.register_profile(
    "boothlab", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("boothlab")

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test may reach for the network


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny pipelines, by architecture: sd15, sd21, sdxl. Not to be changed; copy them first."""
    from tiny_pipelines import BUILDERS, build

    root = tmp_path_factory.mktemp("pipelines")
    return {name: build(name, root / name) for name in BUILDERS}


@pytest.fixture
def global_rng_untouched() -> AbstractContextManager[Any]:
    """`with global_rng_untouched:` fails when the block draws from a global generator (torch's, numpy's, Python's)."""
    return _global_rng_untouched()


@contextmanager
def _global_rng_untouched() -> Iterator[None]:
    import random

    import numpy as np
    import torch

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]
