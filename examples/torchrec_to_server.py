"""A DLRM of TorchRec, from training to the server: `python examples/torchrec_to_server.py --serve`.

The library takes dense features in one matrix and all ids in one `KeyedJaggedTensor`, a bag per row and key.
`hoist` is told which columns and which keys belong to the context.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from steps import CANDIDATES, Features, arguments, load, rank_once, repeated, save, scores, show_commands
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.models.dlrm import DLRM

import rankhoist
from rankhoist import Jagged
from rankhoist.lab.data import RankingData

DENSE = {"context": ["user_stats", "genre_taste"], "candidate": ["item_stats"]}
KEYS = {"context": ["user_id", "hour", "weekday", "history"], "candidate": ["movie_id", "year"]}
WIDTH, BATCH = 32, 256


def build(data: RankingData) -> DLRM:
    """A table for every key but the history, which has the items' and is their mean."""
    kinds = {feature.name: feature for feature in data.schema}
    own = {name: [name] for names in KEYS.values() for name in names if name != "history"} | {"movie_id": ["movie_id"]}
    tables = [EmbeddingBagConfig(kinds[name].size, WIDTH, name=name, feature_names=keys) for name, keys in own.items()]
    history = EmbeddingBagConfig(
        kinds["history"].size, WIDTH, name="history", feature_names=["history"], pooling=PoolingType.MEAN
    )
    dense = sum(kinds[name].size for names in DENSE.values() for name in names)
    return DLRM(EmbeddingBagCollection([*tables, history]), dense, [64, WIDTH], [256, 128, 1])


def bags(features: Features, name: str) -> Jagged:
    """One id a row, or those of a padded list: 0 is none."""
    rows = features[name].reshape(len(features[name]), -1)
    there = rows > 0 if rows.shape[1] > 1 else torch.ones_like(rows, dtype=torch.bool)
    return Jagged(rows[there], lengths=there.sum(1))


def dense(features: Features, *sides: str) -> Tensor:
    """The dense features of these sides, side by side: `[rows, columns]`."""
    return torch.cat([features[name].float() for side in sides for name in DENSE[side]], 1)


def container(features: Features, *sides: str) -> KeyedJaggedTensor:
    """The bags of these sides as the library has them: all of one key after the other."""
    by_key = {name: bags(features, name) for side in sides for name in KEYS[side]}
    lengths, values = (
        torch.cat(parts) for parts in zip(*((b.lengths, b.values[0]) for b in by_key.values()), strict=True)
    )
    return KeyedJaggedTensor([*by_key], values, lengths=lengths)


def named(features: Features, side: str) -> dict[str, Tensor | Jagged]:
    """The features of one side as the server calls them: keys, and the side's columns of the matrix."""
    return {f"dense_features.{side}": dense(features, side), **{key: bags(features, key) for key in KEYS[side]}}


def train(model: nn.Module, data: RankingData) -> None:
    """One epoch over the rows, as ever: nothing here knows that the model will be hoisted."""
    optimiser, loss = torch.optim.Adam(model.parameters(), 1e-3), nn.BCEWithLogitsLoss()
    for rows in torch.randperm(data.train.stop).split(BATCH):
        given = data.rows(rows)
        optimiser.zero_grad()
        logits = model(dense(given, *DENSE), container(given, *KEYS))
        loss(logits.squeeze(1), data.labels[rows]).backward()
        optimiser.step()


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    data = load(args)

    # 1. Train.
    model = build(data)
    train(model, data)
    model.eval()
    rows = data.rows(data.test)
    auc = roc_auc_score(data.labels[data.test], scores(model, dense(rows, *DENSE), container(rows, *KEYS)))
    print(f"AUC on later rows: {auc:.4f}")

    # 2. Hoist. The matrix is marked by columns, the container by keys: each is an input by itself.
    example = data.example(64)
    columns = range(dense(example, "context").shape[1])
    context = {"dense_features": list(columns), **dict.fromkeys(KEYS["context"], True)}
    hoisted = rankhoist.hoist(model, (dense(example, *DENSE), container(example, *KEYS)), context=context)
    print(str(hoisted.plans).partition("\n")[0])  # of one request per call

    # 3. Verify, and save what will be served.
    path = save(hoisted, model, args.out, "torchrec-dlrm")

    # 4. Serve, and rank real candidates for a real user: a key is a feature, a list of ids per row.
    request = data.request(data.draw_row(), CANDIDATES)
    user, items = named(request.context, "context"), named(request.candidates, "candidate")
    show_commands(path, user, items)
    if args.serve:
        whole = repeated(request.context, CANDIDATES) | request.candidates
        rank_once(path, user, items, scores(model, dense(whole, *DENSE), container(whole, *KEYS)))


if __name__ == "__main__":
    main()
