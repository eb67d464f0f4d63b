"""One function of many arguments, in this process or in several."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def completed(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], *, jobs: int
) -> Iterator[tuple[Argument, Result]]:
    """Arguments with what ``function`` makes of them, as they are done.

    With ``jobs`` above 1 in as many new processes of one thread each; what is not begun is dropped
    when the caller stops asking, and what is begun is finished.

    Raises:
        ValueError: if ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    jobs = min(jobs, len(arguments))
    if jobs <= 1:
        for argument in arguments:
            yield argument, function(argument)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin) as pool:
        futures = {pool.submit(function, argument): argument for argument in arguments}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the first process to see
