"""vegrad in a training by Lightning: a callback, and nothing else changes.

The callback watches the module, logs a dozen numbers under "vegrad/" with Lightning's loggers, and
ends the training if something is wrong. (For the Hugging Face Trainer there is `trainer_callback`,
which is used the same way.)

    pip install "vegrad[cli,torch-loggers]" && python lightning_trainer.py
"""

import csv
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vegrad import datasets
from vegrad.torch.callbacks import lightning_callback


class Classifier(lightning.LightningModule):
    """A small network for handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        x, target = batch
        return nn.functional.cross_entropy(self.net(x), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, whose steps the callback watches."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


lightning.seed_everything(0)
digits = datasets.load("digits")
rows = TensorDataset(torch.tensor(digits.x, dtype=torch.float32), torch.tensor(digits.y))
watch = lightning_callback(on_finding="stop")
logger = CSVLogger("logs", name="digits")
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", callbacks=[watch], logger=logger, log_every_n_steps=20, **quiet
)
trainer.fit(Classifier(), DataLoader(rows, batch_size=64, shuffle=True))

print(watch.monitor.report())
with open(Path(logger.log_dir) / "metrics.csv", newline="", encoding="utf-8") as file:
    last = list(csv.DictReader(file))[-1]
print("\nlogged:", ", ".join(name for name in last if name.startswith("vegrad/")))
