"""A DIN of torch-rechub, from training to the server: `python examples/rechub_to_server.py --serve`.

Target attention: the history belongs to the context, the item that it is compared with to the candidate.
"""

from __future__ import annotations

from functools import partial

import torch
from steps import CANDIDATES, arguments, load, rank_once, repeated, save, scores, show_commands
from torch.utils.data import DataLoader, Dataset
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN
from torch_rechub.trainers import CTRTrainer

import rankhoist
from rankhoist.lab.data import RankingData

USER, ITEM = ["user_id", "hour", "weekday"], ["movie_id", "year"]
WIDTH = 32
CONTEXT = [*USER, "history"]  # once per request; the rest is once per candidate


def build(data: RankingData) -> DIN:
    """Ids of user, moment and item, and attention of the item to the history."""
    sizes = {feature.name: feature.size for feature in data.schema}
    ids = {name: SparseFeature(name, sizes[name], WIDTH) for name in [*USER, *ITEM]}
    history = SequenceFeature("history", sizes["history"], WIDTH, pooling="concat", shared_with="movie_id")
    return DIN(
        features=[ids[name] for name in [*USER, "year"]],
        history_features=[history],
        target_features=[ids["movie_id"]],
        mlp_params={"dims": [128, 64], "dropout": 0.1},
        attention_mlp_params={"dims": [64]},
    )


class Rows(Dataset):
    """Some rows of the data, one by one, as torch-rechub's trainer wants them."""

    def __init__(self, data: RankingData, rows: slice) -> None:
        self.features = {name: data.features[name][rows] for name in [*CONTEXT, *ITEM]}
        self.labels = data.labels[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {name: value[row] for name, value in self.features.items()}, self.labels[row]


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    data = load(args)

    # 1. Train, by the library's own trainer: nothing here knows that the model will be hoisted.
    model = build(data)
    loader = partial(DataLoader, batch_size=256)
    trainer = CTRTrainer(model, n_epoch=1, optimizer_params={"lr": 2e-3})
    trainer.train_one_epoch(loader(Rows(data, data.train), shuffle=True))
    print(f"AUC on later rows: {trainer.evaluate(model, loader(Rows(data, data.test))):.4f}")

    # 2. Hoist. The model takes one dict; the inputs are its keys.
    model.eval()
    example = {name: value for name, value in data.example().items() if name in [*CONTEXT, *ITEM]}
    hoisted = rankhoist.hoist(model, (example,), context=CONTEXT)
    print(str(hoisted.plans).partition("\n")[0])  # of one request per call

    # 3. Verify, and save what will be served.
    path = save(hoisted, model, args.out, "rechub-din")

    # 4. Serve, and rank real candidates for a real user.
    request = data.request(data.draw_row(), CANDIDATES)
    context = {name: request.context[name] for name in CONTEXT}
    candidates = {name: request.candidates[name] for name in ITEM}
    show_commands(path, context, candidates)
    if args.serve:
        rank_once(path, context, candidates, scores(model, repeated(context, CANDIDATES) | candidates))


if __name__ == "__main__":
    main()
