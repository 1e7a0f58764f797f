"""One process a run folder: a second one is refused with the owner's name; a dead owner holds nothing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from boothlab.errors import UserError
from boothlab.tracking.lock import RunInUseError, owned, owner_of

HOLD = """
import sys, time
from pathlib import Path
from boothlab.tracking.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_nobody_owns_a_folder_before_and_after(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert owner_of(run_dir) is None
    with owned(run_dir):
        pass
    assert owner_of(run_dir) is None
    with owned(run_dir):  # and it can be taken again
        pass


def test_an_exception_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError), owned(tmp_path / "run"):
        raise ValueError
    assert owner_of(tmp_path / "run") is None


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        owner = owner_of(run_dir)
        assert owner is not None
        assert (owner.pid, owner.host) == (holder.pid, socket.gethostname())
        with pytest.raises(RunInUseError, match=rf"in use by process {holder.pid} on ") as refusal, owned(run_dir):
            pass
        assert isinstance(refusal.value, UserError)
        os.kill(holder.pid, signal.SIGKILL)
    assert owner_of(run_dir) is None
    with owned(run_dir):
        pass


def test_two_runs_beside_each_other_do_not_meet(tmp_path: Path) -> None:
    with owned(tmp_path / "one"), owned(tmp_path / "two"):
        pass
