"""Faults, put in for real: nothing that was written is lost, and the same command goes on. See faults.py."""

from pathlib import Path

import pytest

from fault_bench import Bench, CannotInjectError
from faults import FAULTS, Fault

QUICK = [pytest.param(fault, case, id=f"{fault.title}: {case}") for fault in FAULTS for case in fault.quick]
ALL = [pytest.param(fault, case, id=f"{fault.title}: {case}") for fault in FAULTS for case in fault.cases]


@pytest.fixture(scope="module")
def inside(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("inside"), pipelines["sd15"], inside=True)


@pytest.fixture(scope="module")
def outside(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("outside"), pipelines["sd15"])


def survives(fault: Fault, case: str, bench: Bench) -> None:
    try:
        fault.run(bench, case)
    except CannotInjectError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("fault", "case"), QUICK)
def test_a_fault_in_this_process_takes_nothing(fault: Fault, case: str, inside: Bench) -> None:
    survives(fault, case, inside)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "case"), ALL)
def test_a_fault_takes_nothing(fault: Fault, case: str, outside: Bench) -> None:
    survives(fault, case, outside)
