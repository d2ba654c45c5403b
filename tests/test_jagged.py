"""Jagged inputs: values in bags, with offsets or lengths, are computed at the rate of their rows."""

from __future__ import annotations

import pytest
import torch
from bagged import DOUBLE, IDS, SIZES, WIDTH, Pooled, Weighted, bags, check, ends, starts
from helpers import Function, assert_equal, rates_of
from torch import Tensor, nn

import rankhoist
from rankhoist import Jagged
from rankhoist.capture.jagged import flat
from rankhoist.compiler.graph.node import Rate
from rankhoist.errors import (
    ArtifactError,
    BackendError,
    ContextError,
    InputError,
    VocabularyError,
)
from rankhoist.runtime.contents import contents
from rankhoist.runtime.model_json import with_example
from rankhoist.verify import mixes_rows


class Tokens(nn.Module):
    """Layers over single values, lengths as numbers, then sums by hand: some of it has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(IDS, WIDTH, dtype=DOUBLE), nn.Linear(WIDTH, WIDTH, dtype=DOUBLE)

    def forward(self, tags: Tensor, lengths: Tensor, item: Tensor) -> Tensor:
        x = torch.tanh(self.layer(self.table(tags))) * 2
        owner = torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths)
        pooled = torch.zeros(lengths.shape[0], WIDTH, dtype=x.dtype).index_add(0, owner, x)
        return (pooled / lengths.clamp(min=1).unsqueeze(1) * item).sum(1)


@pytest.mark.parametrize("how", [
    dict(mode="sum"), dict(mode="mean", include_last_offset=True), dict(mode="max"), dict(mode="mean", padding_idx=3),
], ids=str)  # fmt: skip
def test_bags_with_offsets(how: dict):
    torch.manual_seed(0)
    model = Pooled(**how).eval()
    cut = ends if how.get("include_last_offset") else starts

    def arguments(rows: dict) -> tuple:
        tags, words = rows["tags"], rows["words"]
        return tags.values[0], cut(tags.lengths), words.values[0], cut(words.lengths), rows["price"]

    sides = {"tags": bags((0, 20, 3), seed=1)}, {"words": bags(SIZES, seed=2), "price": torch.randn(9, 1, dtype=DOUBLE)}
    example = arguments({"tags": bags(SIZES), "words": bags(SIZES, seed=3), "price": torch.randn(9, 1, dtype=DOUBLE)})
    jagged = {"tags": "tag_offsets", "words": {"offsets": "word_offsets"}}
    made = check(model, example, ["tag*"], jagged, sides, lambda rows: model(*arguments(rows)))
    for hoisted in made[1:]:
        user, item = [n for n in hoisted.plan.nodes if "embedding_bag" in str(n.op)]
        assert (user.rate, item.rate) == (Rate.REQUEST, Rate.ITEM)


def test_values_with_weights_are_columns_of_one_input():
    torch.manual_seed(0)
    model = Weighted().eval()

    def arguments(rows: dict) -> tuple:
        tags, words = rows["tags"], rows["words"]
        return (
            tags.values[0],
            starts(tags.lengths),
            words.values[0],
            starts(words.lengths),
            rows["price"],
            tags.values[1],
        )

    price = torch.randn(9, 1, dtype=DOUBLE)
    example = arguments({"tags": bags(SIZES, True), "words": bags(SIZES, seed=3), "price": price})
    sides = {"tags": bags((4, 0, 9), True, 1)}, {"words": bags(SIZES, seed=2), "price": price}
    jagged = {"tags": "tag_offsets", "strengths": "tag_offsets", "words": "word_offsets"}
    made = check(model, example, ["tags"], jagged, sides, lambda rows: model(*arguments(rows)))
    assert Rate.REQUEST in rates_of(made[1], "embedding_bag")
    assert [c.name for c in made[0].interface.inputs["tensors_0"].bags] == ["tags", "strengths"]


def test_what_treats_values_apart_is_done_at_their_rate_and_the_rest_over_all_candidates():
    torch.manual_seed(0)
    model = Tokens().eval()
    item = torch.randn(9, WIDTH, dtype=DOUBLE)
    given = bags(SIZES)
    sides = {"tags": bags((5, 0, 20), seed=1)}, {"item": item}
    made = check(
        model, (given.values[0], given.lengths, item), ["tags", "lengths"], {"tags": {"lengths": "lengths"}}, sides,
        lambda rows: model(rows["tags"].values[0], rows["tags"].lengths, rows["item"]),
    )  # fmt: skip
    for operator in ("aten.embedding", "aten.linear", "aten.tanh"):
        assert rates_of(made[-1], operator) == {Rate.REQUEST}, operator
    assert Rate.PAIR in rates_of(made[-1], "index_add")


def of_two(tags: Jagged, words: Jagged) -> tuple[torch.Tensor, ...]:
    """What the model takes: bags with where they start, and nine prices."""
    price = torch.randn(9, 1, dtype=DOUBLE)
    return tags.values[0], starts(tags.lengths), words.values[0], starts(words.lengths), price


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    example = of_two(bags(SIZES), bags(SIZES, seed=3))
    jagged = {"tags": "tag_offsets", "words": "word_offsets"}
    return rankhoist.hoist(Pooled("mean").eval(), example, context=["tags"], jagged=jagged)


def test_verify_draws_bags(hoisted: rankhoist.HoistedModel):
    torch.manual_seed(0)
    assert rankhoist.verify(hoisted, Pooled("mean").eval().to(DOUBLE), seed=3).passed is False  # other weights
    model = Pooled("mean").eval()
    model.load_state_dict(hoisted.state_dict())
    certificate = rankhoist.verify(hoisted, model, seed=3)
    assert certificate.passed and certificate.row_independent


def test_a_file_has_bags_that_are_made_up_and_scores_alike(hoisted: rankhoist.HoistedModel, tmp_path):
    hoisted.save(tmp_path / "jagged.rankhoist")
    again = rankhoist.load(tmp_path / "jagged.rankhoist")
    own, made_up = (model.example["tags"] for model in (hoisted, again))
    assert len(made_up) == len(own) and made_up.lengths.tolist() != own.lengths.tolist()
    assert 0 <= int(made_up.values[0].min()) <= int(made_up.values[0].max()) < IDS
    assert not mixes_rows(again)  # rows that the model takes, one by one as together
    tags, words, price = bags((7,)), bags(SIZES), torch.randn(9, 1, dtype=DOUBLE)
    call = tags.values[0], starts(tags.lengths), words.values[0], starts(words.lengths), price
    assert_equal(again(*call), hoisted(*call))
    assert_equal(again.score(again.prepare([tags]), [words, price]), hoisted(*call))


def test_rows_that_are_wanted_are_in_the_file_and_bags_that_fit_no_lengths_are_refused(hoisted, tmp_path):
    hoisted.save(tmp_path / "own.rankhoist", example=True)
    again = rankhoist.load(tmp_path / "own.rankhoist")
    for name in ("tags", "words"):
        assert torch.equal(again.example[name].values[0], hoisted.example[name].values[0])
        assert torch.equal(again.example[name].lengths, hoisted.example[name].lengths)
    description = contents(tmp_path / "own.rankhoist").description
    rows = flat(hoisted.example)
    for forged in (rows["tags.lengths"] + 1, rows["tags.lengths"] - 1, rows["tags.lengths"][:-1].float()):
        with pytest.raises(ArtifactError, match="'tags'"):
            with_example(description, rows | {"tags.lengths": forged})
    with pytest.raises(ArtifactError, match="other rows"):
        with_example(description, rows | {"price": rows["price"][:3]})


def test_an_id_outside_of_its_table_is_named_with_its_input_its_row_and_the_bounds(hoisted: rankhoist.HoistedModel):
    assert {n: b.tolist() for n, b in hoisted.vocabulary.below.items()} == {
        "tags.values_0": [IDS], "words.values_0": [IDS],
    }  # fmt: skip
    tags, words = bags((7,)), bags(SIZES)
    tags.values[0][3], words.values[0][5] = IDS, -1
    with pytest.raises(VocabularyError, match="input 'tags' has id 40 in row 0, expected 0 to 39"):
        hoisted.prepare([tags])
    with pytest.raises(VocabularyError, match="input 'words' has id -1 in row 2, expected 0 to 39"):
        hoisted.score(hoisted.prepare([bags((7,))]), [words, torch.randn(9, 1, dtype=DOUBLE)])


def test_plans_of_bags_are_tuned(hoisted: rankhoist.HoistedModel, tmp_path):
    hoisted.save(tmp_path / "tuned.rankhoist")
    again = rankhoist.load(tmp_path / "tuned.rankhoist").tune([20, 200], seconds=0.5)
    trials = [trial for point in again.report().tuning.points for trial in point.trials]
    assert trials and {trial.backend for trial in trials} == {"eager"}
    assert not [trial.problem for trial in trials if "differs" in trial.problem]


def test_what_takes_no_bags_says_so(hoisted: rankhoist.HoistedModel):
    with pytest.raises(BackendError, match="'tags'"):
        hoisted.to_backend("inductor")


def test_nested_tensors_are_refused_by_name():
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=layout)
        with pytest.raises(InputError, match="'context' is a nested tensor"):
            rankhoist.hoist(
                Function(lambda c, k: c * k).eval(),
                {"context": nested, "candidate": torch.rand(2, 3)},
                context=["context"],
            )


def test_a_call_is_checked(hoisted: rankhoist.HoistedModel):
    tags, words = bags((7,)), bags(SIZES)
    price = torch.randn(9, 1, dtype=DOUBLE)
    with pytest.raises(InputError, match=r"jagged input 'tags'.*begin with 0"):
        hoisted(tags.values[0], torch.tensor([1]), words.values[0], starts(words.lengths), price)
    with pytest.raises(InputError, match="jagged input 'words'"):
        hoisted(tags.values[0], torch.tensor([0]), words.values[0][:2], starts(words.lengths), price)
    with pytest.raises(InputError, match="'tags' is Tensor, expected bags"):
        hoisted.prepare([tags.values[0]])
    with pytest.raises(InputError, match=r"expected torch.int64"):
        hoisted.prepare([Jagged(tags.values[0].double(), lengths=tags.lengths)])
    with pytest.raises(InputError, match="has 2 columns, expected 1"):
        hoisted.prepare([bags((7,), True)])
    with pytest.raises(InputError, match=r"are tensors of one axis and more, got \[1, 0\]"):
        Jagged(tags.values[0], lengths=[1, 0])
    none = torch.zeros(0, dtype=torch.int64)
    assert len(hoisted(tags.values[0], torch.tensor([0]), none, none, price[:0])) == 0
    with pytest.raises(InputError, match="different row counts"):
        hoisted.score(hoisted.prepare([tags]), [words, price[:3]])


def test_what_is_declared_is_checked():
    model, given = Pooled().eval(), bags(SIZES)
    example = of_two(given, given)
    jagged = {"tags": "tag_offsets", "words": "word_offsets"}
    with pytest.raises(InputError, match=r"jagged={values: lengths}"):
        rankhoist.hoist(model, example, context=["tags"])
    with pytest.raises(InputError, match="names 'tag', which is no tensor"):
        rankhoist.hoist(model, example, context=["tags"], jagged={"tag": "tag_offsets"})
    with pytest.raises(InputError, match="neither"):
        rankhoist.hoist(model, example, context=["tags"], jagged={"tags": {"sizes": "tag_offsets"}})
    with pytest.raises(ContextError, match="'tag_offsets' is context, so 'tags'"):
        rankhoist.hoist(model, example, context=["tag_offsets"], jagged=jagged)
    with pytest.raises(ContextError, match="'words' is jagged and marked as the item's"):
        rankhoist.hoist(model, example, context=["tags"], item=["words"], jagged=jagged)
    with pytest.raises(InputError, match="lengths add up to"):
        rankhoist.hoist(model, example, context=["tags"], jagged=jagged | {"tags": {"lengths": "tag_offsets"}})
    with pytest.raises(InputError, match=r"needs? the module itself"):
        exported = torch.export.export(nn.Linear(2, 1), (torch.randn(2, 2),))
        rankhoist.hoist(exported, (torch.randn(2, 2),), context=["input"], jagged={"input": "input"})


def test_rows_of_bags_are_chosen_as_those_of_a_tensor():
    given = bags((2, 0, 3))
    assert given[1:].lengths.tolist() == [0, 3]
    picked = given[torch.tensor([2, 0, 2])]
    assert picked.lengths.tolist() == [3, 2, 3]
    assert torch.equal(picked.values[0], torch.cat([given.values[0][2:], given.values[0][:2], given.values[0][2:]]))
    assert torch.equal(Jagged.joined([given[:1], given[1:]]).values[0], given.values[0])
    assert given.flip(0).lengths.tolist() == [3, 0, 2]
