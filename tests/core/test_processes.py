"""One function of many arguments, in one process or several."""

import os
import time
from math import factorial

import pytest
import torch

from scalegmn_opt.processes import completed


def where(number):
    time.sleep(0.2)
    return os.getpid(), torch.get_num_threads(), number


def touch(path):
    time.sleep(0.05)
    path.touch()


def refuse(number):
    if number == 1:
        raise ValueError("one")
    return number


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_argument_has_its_result(jobs):
    assert dict(completed(factorial, range(6), jobs=jobs)) == {n: factorial(n) for n in range(6)}


def test_processes_are_new_ones_of_one_thread():
    found = [result for _, result in completed(where, range(4), jobs=2)]
    assert os.getpid() not in {process for process, _, _ in found}
    assert len({process for process, _, _ in found}) == 2
    assert {threads for _, threads, _ in found} == {1}
    assert [result[0] for _, result in completed(where, range(1), jobs=2)] == [os.getpid()]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_the_callers(jobs):
    with pytest.raises(ValueError, match="one"):
        list(completed(refuse, range(4), jobs=jobs))


def test_what_is_not_begun_is_dropped_when_nobody_asks(tmp_path):
    paths = [tmp_path / str(number) for number in range(200)]
    for path, _ in completed(touch, paths, jobs=2):
        assert path.exists()
        break
    assert len(list(tmp_path.iterdir())) < 100


def test_no_process_is_refused():
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        next(completed(factorial, [1], jobs=0))
