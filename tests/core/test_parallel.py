"""Rows that are many are worked on by several processes, and the result is that of one."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from abctune.core.errors import UserError
from abctune.core.parallel import MIN_ROWS, over_batches


def start(factor):
    return lambda batch: (os.getpid(), batch * factor)


def refusing():
    def refuse(batch):
        raise UserError(f"params.yaml: batch {batch}")

    return refuse


@pytest.fixture(scope="module")
def by_several():
    return list(over_batches(range(40), partial(start, 3), MIN_ROWS, cores=2))


def test_the_results_come_in_order_from_several_processes(by_several):
    assert [result for _, result in by_several] == [3 * batch for batch in range(40)]
    assert os.getpid() not in {process for process, _ in by_several}


def test_few_rows_are_not_worth_a_process():
    by_one = list(over_batches(range(40), partial(start, 3), MIN_ROWS - 1, cores=2))
    assert by_one == [(os.getpid(), 3 * batch) for batch in range(40)]


def test_an_error_is_the_one_that_the_work_raised():
    with pytest.raises(UserError, match=r"params\.yaml: batch 0"):
        list(over_batches(range(40), refusing, MIN_ROWS, cores=2))


def test_a_few_batches_are_read_ahead_and_no_more():
    read = []
    results = over_batches((read.append(n) or n for n in range(100)), partial(start, 1), MIN_ROWS, cores=2)
    next(results)
    assert len(read) < 10
    results.close()


KILLED = """
import os, time
from functools import partial
from abctune.core.parallel import MIN_ROWS, over_batches
from tests.core.test_parallel import start
for found in over_batches(range(10**6), partial(start, 1), MIN_ROWS, cores=2):
    print(found[0], flush=True)
    time.sleep(0.2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_no_process_outlives_a_stage_that_was_killed():
    stage = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(stage.stdout.readline()))
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    deadline = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
