"""Optimizers inside DDP, two processes of accelerate, and refused by sharded parameters."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from optimizers import CLASSES, X, loss_of, make, network, options_of, values
from torch import nn

from scalegmn_opt.optim import GaugeAdam


@pytest.fixture
def mesh(tmp_path):
    """One gloo process as a device mesh."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cls", CLASSES)
def test_sharded_parameters_are_refused(cls, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    message = f"{cls.__name__}: expected whole parameters, got 'weight' as a DTensor"
    with pytest.raises(TypeError, match=message):
        cls([("weight", weight)], **options_of(cls))
    plain = nn.Parameter(torch.ones(2))
    own = cls([("plain", plain)], **options_of(cls))
    with pytest.raises(TypeError, match=message):
        own.add_param_group({"params": [("weight", weight)]})
    assert len(own.param_groups) == 1
    train_on(plain, own)


def train_on(p, own):
    p.square().sum().backward()
    own.step()
    assert (p != 1).all()


def test_fully_sharded_model_is_refused(mesh):
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match=r"'0\.weight' as a DTensor: sharded models .FSDP"):
        CLASSES[0].for_model(model, (X,), **options_of(CLASSES[0]))
    with pytest.raises(TypeError, match="expected whole parameters"):
        make(CLASSES[1], model)


@pytest.mark.parametrize("gauge", ["swept", "observed"])
@pytest.mark.parametrize("order", ["DDP", "compiled DDP", "DDP of a compiled model"])
def test_model_inside_of_wrappers_is_seen(order, gauge, mesh):
    """Whatever the order, the graph and training are those of the model by itself."""
    found = []
    for name in ("none", order):
        model = whole = network()
        if name == "DDP of a compiled model":
            whole = torch.compile(whole, backend="eager")
        if "DDP" in name:
            whole = nn.parallel.DistributedDataParallel(whole)
        if name == "compiled DDP":
            whole = torch.compile(whole, backend="eager")
        own = GaugeAdam.for_model(whole, (X,), gauge=gauge)
        for _ in range(3):
            own.zero_grad()
            loss_of(whole).backward()
            own.step()
        found.append((own.graph, values(model)))
    (graph, plain), (wrapped, trained) = found
    assert [g.symmetry for g in wrapped.groups] == [g.symmetry for g in graph.groups]
    torch.testing.assert_close(trained, plain)


SCRIPT = """
import copy, json, os, sys
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, sys.argv[1])
from optimizers import CLASSES, X, Y, loss_of, network, traced

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
assert accelerator.num_processes == 2
found = {}
for cls in CLASSES:
    plain = network()
    model, own = accelerator.prepare(plain, traced(cls, plain))
    batches = accelerator.prepare(DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=False))

    def epoch():
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                own.step()
                own.zero_grad()

    before = loss_of(plain).item()
    for _ in range(20):
        epoch()
    state, saved = copy.deepcopy(own.state_dict()), [p.detach().clone() for p in plain.parameters()]
    epoch()
    after = [p.detach().clone() for p in plain.parameters()]
    with torch.no_grad():
        for p, old in zip(plain.parameters(), saved):
            p.copy_(old)
    own.load_state_dict(state)
    epoch()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), after))
    both = accelerator.gather(torch.cat([p.detach().flatten() for p in plain.parameters()])[None])
    found[cls.__name__] = {
        "before": before, "after": loss_of(plain).item(), "steps": own.optimizer.health().steps,
        "apart": (both[0] - both[1]).abs().max().item(),
    }
if accelerator.is_main_process:
    print("FOUND" + json.dumps(found), flush=True)
accelerator.end_training()
os._exit(0)  # not by the teardown of torch, which aborts now and then after all is done
"""


@pytest.mark.slow
def test_accelerate_in_two_processes(tmp_path):
    """Gradient accumulation, and a resumed epoch, with the same parameters in both processes."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
               "--standalone", str(script), os.path.dirname(__file__)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("FOUND"))
    for name, row in json.loads(line.removeprefix("FOUND")).items():
        assert row["after"] < 0.8 * row["before"], name
        assert row["apart"] == 0.0, name
        assert row["steps"] == 22, name  # 2 batches of each process an epoch, 2 of them a step


def worker(rank, folder):
    """One process of a DDP training of each class on its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    for cls in CLASSES:
        torch.manual_seed(rank)
        model = nn.parallel.DistributedDataParallel(network().double())
        own = make(cls, model.module, max_change=1.0)
        traced, alone = (
            cls.for_model(m, (X.double(),), **options_of(cls)).graph for m in (model, model.module)
        )
        assert (traced.groups, traced.blocks) == (alone.groups, alone.blocks)
        for _ in range(5):
            own.zero_grad()
            nn.functional.cross_entropy(model(X[rank::2].double()), LABELS[rank::2]).backward()
            own.step()
        torch.save(model.module.state_dict(), f"{folder}/{cls.__name__}{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # not by the teardown of torch, which aborts now and then after all is done


LABELS = (X[:, 0] > X[:, 1]).long() + (X[:, 2] > 1).long()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for cls in CLASSES:
        first, second = (
            torch.load(tmp_path / f"{cls.__name__}{rank}.pt", weights_only=True)
            for rank in range(2)
        )
        model, x = network().double(), X.double()
        own = make(cls, model, max_change=1.0)
        losses = []
        for _ in range(6):  # in float64: whitening makes much of rounding
            own.zero_grad()
            losses.append(nn.functional.cross_entropy(model(x), LABELS))
            if len(losses) < 6:
                losses[-1].backward()
                own.step()
        assert losses[-1] < losses[0]
        for name, p in model.state_dict().items():
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], p, rtol=1e-6, atol=1e-9)
