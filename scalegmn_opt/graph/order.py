"""In which order neuron groups can be worked out, each from others."""

from collections.abc import Container, Iterator, Mapping, Sequence
from heapq import heappop, heappush


def fewest_missing_first(
    needs: Mapping[str, Sequence[str]], *, begun: Container[str], every: Container[str]
) -> Iterator[str]:
    """An order of names: of those that may come, if any, the first that misses fewest needs.

    A name may come once one of its needs has, and from the start if it is ``begun`` or needs none;
    one of ``every`` only once all of its needs have. In time as of sorting.
    """
    place = {name: i for i, name in enumerate(needs)}
    missing = {name: len(others) for name, others in needs.items()}
    users: dict[str, list[str]] = {name: [] for name in needs}
    for name, others in needs.items():
        for other in others:
            users[other].append(name)

    def entry(name: str) -> tuple[bool, int, int, str]:
        untouched = name not in begun and missing[name] == len(needs[name])
        waits = missing[name] > 0 and (untouched or name in every)
        return waits, missing[name], place[name], name

    # A name is there once more for each need that comes; the newest entry is the smallest.
    queue = sorted(map(entry, needs))
    done: set[str] = set()
    while queue:
        *_, name = heappop(queue)
        if name in done:
            continue
        done.add(name)
        yield name
        for user in users[name]:
            missing[user] -= 1
            heappush(queue, entry(user))
