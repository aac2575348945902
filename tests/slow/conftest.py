"""Processes that start in milliseconds."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest

SLOW = Path(__file__).parent


@pytest.fixture(scope="session")
def forks():
    """They are forks of a process that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings", "rlhf_helpers.beyond.parallel"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not hand sys.path to it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SLOW.parents[1]), str(SLOW)]))
        forkserver.ensure_running()
    return context
