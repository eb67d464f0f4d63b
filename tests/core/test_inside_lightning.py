"""Optimizers inside Lightning: a short training, a schedule, a checkpoint in the middle."""

import logging
import warnings

import pytest
import torch
from optimizers import CLASSES, X, Y, loss_of, network, same, traced, values
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")


class Module(lightning.LightningModule):
    def __init__(self, cls):
        super().__init__()
        self.net, self.cls = network(), cls

    def training_step(self, batch, _):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        own = traced(self.cls, self.net)
        schedule = torch.optim.lr_scheduler.ExponentialLR(own, 0.9)
        return {"optimizer": own, "lr_scheduler": schedule}


def fit(module, folder, epochs, *, resume=None):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
            enable_checkpointing=False,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(X, Y), batch_size=16)
        trainer.fit(module, loader, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("cls", CLASSES)
def test_lightning(cls, tmp_path):
    module = Module(cls)
    start = loss_of(module.net).item()
    trainer = fit(module, tmp_path, 10)
    own = trainer.optimizers[0]
    assert own.health().steps == 20
    assert own.param_groups[0]["lr"] == pytest.approx(0.9**10)
    assert loss_of(module.net) < 0.8 * start
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    whole, resumed = Module(cls), Module(cls)
    fit(whole, tmp_path, 12)
    fit(resumed, tmp_path, 12, resume=tmp_path / "half.ckpt")
    assert same(values(whole), values(resumed))
