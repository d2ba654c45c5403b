"""A ranker that Lightning trains once per request, then hoisted: `python examples/lightning_grouped.py`.

Needs Lightning (`pip install lightning`). A log of impressions is drawn: what a user likes is a direction, and so is
what an item is like. Lightning sees a module with the ranker's own parameters, and batches of whole requests.
"""

from __future__ import annotations

import warnings

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

import rankhoist
from rankhoist.training import Batch, GroupedModel, ImpressionLog, RequestBatches

USERS, ITEMS, REQUESTS, EACH, ROWS = 100, 200, 2000, 20, 400


class Ranker(nn.Module):
    """A user's and an item's embedding, a cross layer, a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 48), nn.Embedding(ITEMS, 16)
        self.cross = nn.Linear(64, 64)
        self.top = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """`[rows], [rows] -> [rows]`."""
        x = torch.cat([self.user(user), self.item(item)], 1)
        return self.top(x * self.cross(x) + x).squeeze(1)


class Trained(LightningModule):
    """One step is a batch of requests, each with its context once."""

    def __init__(self, ranker: GroupedModel, batches: RequestBatches) -> None:
        super().__init__()
        self.ranker, self.batches, self.losses = ranker, batches, list[float]()

    def on_train_epoch_start(self) -> None:
        """Requests are shuffled anew."""
        self.batches.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The loss."""
        scores = self.ranker(**batch.inputs, request_offsets=batch.request_offsets)
        loss = binary_cross_entropy_with_logits(scores, batch.targets["click"])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the ranker's own parameters."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def impressions() -> ImpressionLog:
    """Clicks where the user's direction and the item's agree."""
    request = torch.arange(REQUESTS).repeat_interleave(EACH)
    user, item = torch.randint(USERS, (REQUESTS,))[request], torch.randint(ITEMS, (len(request),))
    likes, is_like = torch.randn(USERS, 4), torch.randn(ITEMS, 4)
    click = ((likes[user] * is_like[item]).sum(1) > 0).float()
    columns = {"user": user, "item": item, "click": click}
    return ImpressionLog(columns, request=request, context=["user"], targets=["click"])


def main() -> None:
    """Train, show that the gradients are those of rows, hoist."""
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    log, ranker = impressions(), Ranker()
    example = (torch.arange(8), torch.arange(8))
    workload = rankhoist.Workload(candidates=ROWS, requests=ROWS // EACH)
    step = rankhoist.grouped(ranker, example, context=["user"], workload=workload)
    print(rankhoist.verify_gradients(step))

    batches = RequestBatches(log, rows=ROWS)
    loader, trained = DataLoader(log, batch_sampler=batches, collate_fn=log.collate), Trained(step, batches)
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(trained, loader)
    print(f"loss {trained.losses[0]:.3f} before, {trained.losses[-1]:.3f} after {len(trained.losses)} steps")

    hoisted = rankhoist.hoist(ranker.eval(), example, context=["user"])  # its own parameters were trained
    print(rankhoist.verify(hoisted, ranker))


if __name__ == "__main__":
    main()
