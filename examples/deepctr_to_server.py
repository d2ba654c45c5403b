"""A DCN of DeepCTR-Torch, from training to the server: `python examples/deepctr_to_server.py --serve`.

The library packs all features into one matrix X, context and candidate columns in turn. `hoist` is told which columns
belong to the context.
"""

from __future__ import annotations

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DCN
from sklearn.metrics import roc_auc_score
from steps import CANDIDATES, Features, arguments, load, rank_once, repeated, save, scores, show_commands
from torch import Tensor

import rankhoist
from rankhoist.lab.data import RankingData

CONTEXT = ["user_id", "hour", "weekday", "user_stats", "genre_taste", "history"]
CANDIDATE = ["movie_id", "year", "item_stats"]
WIDTH = 32


def build(data: RankingData) -> DCN:
    """Every feature of the two lists, by kind; the history is the mean of its items' embeddings."""
    kinds = {feature.name: feature for feature in data.schema}
    columns = []
    for name in [*CONTEXT, *CANDIDATE]:
        feature, values = kinds[name], data.features[name]
        if feature.kind == "dense":
            columns.append(DenseFeat(name, feature.size))
        elif feature.kind == "id":
            columns.append(SparseFeat(name, feature.size, WIDTH))
        else:
            item = SparseFeat(name, feature.size, WIDTH, embedding_name="movie_id")
            columns.append(VarLenSparseFeat(item, maxlen=values.shape[1], combiner="mean"))
    return DCN(columns, columns, cross_num=3, cross_parameterization="matrix", dnn_hidden_units=(256, 128))


def packed(model: DCN, features: Features) -> Tensor:
    """The features that are there, side by side in the order of the model's own index: [rows, columns]."""
    there = [features[name] for name in model.feature_index if name in features]
    return torch.cat([value.reshape(len(value), -1).float() for value in there], dim=1)


def context_columns(model: DCN) -> list[int]:
    """The columns of X that belong to the context."""
    places = (model.feature_index[name] for name in CONTEXT)
    return sorted(column for first, end in places for column in range(first, end))


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    data = load(args)

    # 1. Train, by the library's own `fit`: nothing here knows that the model will be hoisted.
    model = build(data)
    model.compile(torch.optim.Adam(model.parameters(), 1e-3), "binary_crossentropy")
    rows = {name: data.rows(part) for name, part in (("train", data.train), ("test", data.test))}
    inputs = {name: {key: rows[name][key].numpy() for key in model.feature_index} for name in rows}
    model.fit(inputs["train"], data.labels[data.train].numpy(), batch_size=256, epochs=1, verbose=2)
    auc = roc_auc_score(data.labels[data.test], model.predict(inputs["test"], 4096))
    print(f"AUC on later rows: {auc:.4f}")

    # 2. Hoist. One packed matrix is marked by columns.
    model.eval()
    columns = context_columns(model)
    hoisted = rankhoist.hoist(model, (packed(model, data.example()),), context={"X": columns})
    print(str(hoisted.plans).partition("\n")[0])  # of one request per call

    # 3. Verify, and save what will be served.
    path = save(hoisted, model, args.out, "deepctr-dcn")

    # 4. Serve, and rank real candidates for a real user: the two parts of X are features of their own.
    request = data.request(data.draw_row(), CANDIDATES)
    whole = packed(model, repeated(request.context, CANDIDATES) | request.candidates)
    context = {"X.context": whole[:1, columns]}
    candidates = {"X.candidate": whole[:, [c for c in range(whole.shape[1]) if c not in columns]]}
    show_commands(path, context, candidates)
    if args.serve:
        rank_once(path, context, candidates, scores(model, whole))


if __name__ == "__main__":
    main()
