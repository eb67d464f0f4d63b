"""Patches of photographs."""

import pytest
import torch

from scalegmn_opt.tasks import photographs

pytest.importorskip("PIL")


def test_patches_are_real_apart_and_always_the_same():
    patches = photographs(64)
    for part in (patches.train, patches.test):
        assert part.shape[1:] == (3, 64, 64)
        assert part.min() >= 0
        assert part.max() <= 1
        assert part.std() > 0.1
    assert len(patches.train) > 2 * len(patches.test) > 50
    assert torch.equal(photographs(64).train, patches.train)
    train = {tuple(patch[:, 0].flatten().tolist()) for patch in patches.train}
    assert not any(tuple(patch[:, 0].flatten().tolist()) in train for patch in patches.test)


@pytest.mark.parametrize(("size", "message"), [(7, "even"), (0, "positive"), (100, "must fit")])
def test_sizes_that_do_not_work(size, message):
    with pytest.raises(ValueError, match=message):
        photographs(size)
