"""The recipes that learn a dataset: what they read, what they refuse, and that they train as alone beside others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue

from openmint.errors import BadDataset, BadRequest
from openmint.events import TrainRequested
from openmint_trainer.checkpoints import read_checkpoint
from openmint_trainer.data import Tokenizer
from openmint_trainer.executor import Executor
from openmint_trainer.mixed_training import MixedTraining, Run, StepFinished
from openmint_trainer.recipes import RECIPES, read_rows

JsonRows = list[dict[str, JsonValue]]
MakeExecutor = Callable[..., Executor]


class LetterTokenizer:
    """One token per character, within the tiny base's 96 tokens; 0 ends a text."""

    eos_token_id = 0
    chat_template: str | None = "{role}{content}"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return ([1] if add_special_tokens else []) + [ord(c) - 31 for c in text]

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        text = "".join(f"<{message['role'][0]}>{message['content']};" for message in conversation)
        return text + ("<a>" if add_generation_prompt else "")


TOKENIZER: Tokenizer = LetterTokenizer()
WORDS = ("red", "green", "blue", "a long grey line", "x", "yellow bird")


def raw_rows(recipe: str, seed: int = 0) -> JsonRows:
    rows: JsonRows = []
    for i, word in enumerate(WORDS):
        prompt = f"{seed}:{word}="
        tokens: JsonValue = [40 + i, 50 + seed, 60]
        match recipe:
            case "sft":
                rows.append({"prompt": prompt, "completion": word[::-1]})
            case "dpo":
                rows.append({"prompt": prompt, "chosen": word[::-1], "rejected": word.upper()})
            case "distillation":
                teacher: JsonValue = [[40 + i, 70, 71], [50 + seed, 3], [60]]
                logprobs: JsonValue = [[-0.2, -2.0, -3.0], [-0.5, -1.0], [0.0]]
                rows.append(
                    {
                        "prompt": prompt,
                        "completion_tokens": tokens,
                        "teacher_tokens": teacher,
                        "teacher_logprobs": logprobs,
                    }
                )
            case _:
                rows.append({"prompt": prompt, "completion_tokens": tokens, "weights": [0.5, -0.1, 0.25]})
    return rows


def spec_of(recipe: str, steps: int = 4, **more: Any) -> TrainRequested:
    body: dict[str, Any] = {
        "policy": "p",
        "base": "tiny",
        "recipe": recipe,
        "dataset": {"digest": "sha256:" + "0" * 64},
        "training": {"steps": steps, "batch_rows": 4, "max_tokens_per_row": 64},
        "optimizer": {"learning_rate": 1e-2},
    }
    return TrainRequested.model_validate(body | more)


def admit(training: MixedTraining, recipe: str, steps: int = 4, checkpoint: Path | None = None, **more: Any) -> Run:
    spec = spec_of(recipe, steps, **more)
    rows = read_rows(spec, raw_rows(recipe), TOKENIZER)
    saved = read_checkpoint(checkpoint) if checkpoint else None
    return training.admit(recipe, "tenant-" + recipe, spec, rows, saved)


def train(training: MixedTraining) -> dict[object, list[StepFinished]]:
    steps: dict[object, list[StepFinished]] = {}
    while training.has_work:
        for event in training.advance():
            assert isinstance(event, StepFinished)
            steps.setdefault(event.key, []).append(event)
    return steps


def weights_of(executor: Executor, training: MixedTraining, key: str) -> torch.Tensor:
    slot = training.runs[key].policy.slot
    return executor.banks.bank_of(slot).row(slot).masters.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_recipe_in_one_run_with_the_others_trains_as_alone(
    dtype: torch.dtype, make_executor: MakeExecutor
) -> None:
    executor = make_executor(dtype)
    mixed = MixedTraining(executor, budget_tokens=256, portion_tokens=96)
    for recipe in RECIPES:
        admit(mixed, recipe)
    together = train(mixed)
    for recipe in RECIPES:
        alone_executor = make_executor(dtype)
        alone = MixedTraining(alone_executor, budget_tokens=256, portion_tokens=96)
        admit(alone, recipe)
        assert train(alone)[recipe] == together[recipe]
        assert torch.equal(weights_of(alone_executor, alone, recipe), weights_of(executor, mixed, recipe))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_resumed_run_equals_the_uninterrupted_one(recipe: str, make_executor: MakeExecutor, tmp_path: Path) -> None:
    """Also where references were kept before the break and have to be asked for again, beside other rows."""
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=256)
    admit(training, recipe, steps=6)
    steps: list[StepFinished] = []
    while training.has_work:
        for event in training.advance():
            assert isinstance(event, StepFinished)
            steps.append(event)
            if event.step == 3:
                training.save(recipe, tmp_path / "saved")
    fresh = make_executor()
    resumed = MixedTraining(fresh, budget_tokens=256)
    admit(resumed, recipe, steps=6, checkpoint=tmp_path / "saved")
    assert train(resumed)[recipe] == steps[3:]
    assert torch.equal(weights_of(fresh, resumed, recipe), weights_of(executor, training, recipe))


@pytest.mark.parametrize("recipe", ["sft", "dpo", "distillation"])
def test_the_loss_falls(recipe: str, make_executor: MakeExecutor) -> None:
    training = MixedTraining(make_executor(), budget_tokens=512)
    admit(training, recipe, steps=15)
    losses = [step.loss for step in train(training)[recipe]]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_dpo_begins_at_the_base_and_tells_accuracy_and_margin(make_executor: MakeExecutor) -> None:
    training = MixedTraining(make_executor(), budget_tokens=512)
    run = admit(training, "dpo", steps=15, loss={"config": {"beta": 0.5}})
    assert run.recipe.config == {"beta": 0.5}
    steps = train(training)["dpo"]
    assert steps[0].loss == pytest.approx(0.693147, abs=1e-4)
    assert steps[0].metrics["margin"] == pytest.approx(0.0, abs=1e-4)
    assert steps[-1].metrics["accuracy"] == 1.0
    assert steps[-1].metrics["margin"] > 0.5


def test_each_pair_asks_the_base_once(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor()
    asked: list[int] = []
    ask = executor.reference_logprobs
    monkeypatch.setattr(executor, "reference_logprobs", lambda rows: (asked.append(len(rows)), ask(rows))[1])
    training = MixedTraining(executor, budget_tokens=512)
    admit(training, "dpo", steps=9)
    train(training)
    assert sum(asked) == 2 * len(WORDS)


def test_a_clients_own_loss_has_the_gradient_that_its_weights_say(make_executor: MakeExecutor) -> None:
    """Two tokens pulled apart: the one with a positive weight becomes likelier, the one with a negative less likely."""
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=512)
    run = admit(training, "weights", steps=8)
    rows = read_rows(spec_of("weights"), raw_rows("weights"), TOKENIZER)
    before = executor.reference_logprobs(rows)
    train(training)
    assert run.step == 8
    from openmint_trainer.executor import Work
    from openmint_trainer.rows import Portion

    (after,) = executor.forward_backward([Work(run.policy, Portion(tuple(rows)))])
    weights = torch.cat([row.weights[row.weights != 0] for row in rows])
    gains = after.logprobs - torch.cat([b[row.weights != 0] for b, row in zip(before, rows, strict=True)])
    assert float(gains[weights > 0].mean()) > 0 > float(gains[weights < 0].mean())


def test_a_batch_is_weighed_as_its_recipe_says() -> None:
    def batch(recipe: str) -> list[Any]:
        spec = spec_of(recipe)
        rows = read_rows(spec, raw_rows(recipe), TOKENIZER)
        return RECIPES[recipe](rows, spec, torch.Generator().manual_seed(0)).next_batch()

    assert sum(float(row.weights.sum()) for row in batch("sft")) == pytest.approx(1.0)
    assert sum(float(row.weights.sum()) for row in batch("distillation")) == pytest.approx(1.0)
    pairs = batch("dpo")
    assert len(pairs) == 8
    assert {float(w) for row in pairs for w in row.weights if w} == {0.25}
    assert {round(float(w), 6) for row in batch("weights") for w in row.weights if w} == {0.5, -0.1, 0.25}


def text_of(ids: torch.Tensor) -> str:
    return "".join(chr(i + 31) for i in ids.tolist())


def test_pairs_are_rendered_like_any_other_answer_text_or_chat() -> None:
    pair: dict[str, JsonValue] = {"prompt": "2+2=", "chosen": "4", "rejected": "five"}
    chat: dict[str, JsonValue] = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    rows = read_rows(spec_of("dpo"), [pair, chat], TOKENIZER)
    learnt = [text_of(row.targets[row.weights != 0]) for row in rows]
    assert learnt == ["4\x1f", "five\x1f", "yes;", "no;"]
    assert text_of(rows[2].tokens) == "<u>hi;<a>yes"


def test_a_teachers_tokens_become_targets_where_they_belong() -> None:
    row: dict[str, JsonValue] = {
        "prompt_tokens": [5, 6],
        "completion_tokens": [7, 8, 9],
        "teacher_tokens": [[7, 17], [8], [9, 19, 29]],
        "teacher_logprobs": [[-1.0, -1.0], [-3.0], [0.0, -50.0, -50.0]],
        "weights": [1, 2, 0],
    }
    (made,) = read_rows(spec_of("distillation"), [row], TOKENIZER)
    assert made.tokens.tolist() == [5, 6, 7]
    assert made.targets.tolist() == [[0, 0, 0], [7, 17, 0], [8, 0, 0]]
    assert made.weights.tolist() == [[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [2.0, 0.0, 0.0]]
    assert made.trained_tokens == 2


TOKENS: dict[str, JsonValue] = {"prompt": "a", "completion_tokens": [3, 4], "weights": [1, 1]}
TEACHER: dict[str, JsonValue] = {
    "prompt": "a",
    "completion_tokens": [3],
    "teacher_tokens": [[3]],
    "teacher_logprobs": [[-1.0]],
}


@pytest.mark.parametrize(
    ("recipe", "row", "message"),
    [
        ("sft", raw_rows("dpo")[0], "row 2 is a row of preference; recipe sft reads rows of text"),
        ("dpo", raw_rows("sft")[0], "row 2 is a row of text; recipe dpo reads rows of preference"),
        ("dpo", TOKENS, "row 2 is a row of tokens; recipe dpo reads rows of preference"),
        ("dpo", {"prompt": "a", "chosen": "b"}, "row 2 has no rejected"),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}, "row 2 prefers an answer to itself"),
        ("dpo", {"prompt": "a" * 70, "chosen": "b", "rejected": "c"}, "row 2 has 73 tokens, more than"),
        ("distillation", TOKENS, "row 2 has no teacher_tokens, which recipe distillation reads"),
        ("weights", TEACHER, "row 2 has no weights, which recipe weights reads"),
        ("weights", TEACHER | {"weights": [1]}, "recipe weights does not read them"),
        ("weights", TOKENS | {"prompt": [{"role": "user"}]}, r"row 2: prompt\[0\].content is not a text"),
        ("weights", TOKENS | {"completion_tokens": [3] * 70, "weights": [1] * 70}, "row 2 has 72 tokens, more than"),
        ("weights", {**TOKENS, "prompt_tokens": []}, "row 2 needs exactly one of prompt and prompt_tokens"),
    ],
)
def test_a_row_that_the_recipe_cannot_read_is_named(recipe: str, row: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(BadDataset, match=message):
        read_rows(spec_of(recipe), [raw_rows(recipe)[0], row], TOKENIZER)


def test_an_empty_prompt_predicts_nothing() -> None:
    row: dict[str, JsonValue] = {"prompt_tokens": [], "completion_tokens": [3, 4], "weights": [1, 1]}
    with pytest.raises(BadDataset, match="row 1 has an empty prompt"):
        read_rows(spec_of("weights"), [row], TOKENIZER)


@pytest.mark.parametrize(
    ("recipe", "loss", "field"),
    [
        ("sft", {"name": "dpo"}, "loss.name"),
        ("sft", {"name": "alchemy"}, "loss.name"),
        ("dpo", {"config": {"beta": -1}}, "loss.config.beta"),
        ("dpo", {"config": {"gamma": 1}}, "loss.config.gamma"),
        ("distillation", {"config": {"beta": 1}}, "loss.config.beta"),
    ],
)
def test_a_loss_that_the_recipe_does_not_take_is_refused_before_a_slot_is(
    recipe: str, loss: dict[str, Any], field: str, make_executor: MakeExecutor
) -> None:
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=512)
    with pytest.raises(BadRequest) as caught:
        admit(training, recipe, loss=loss)
    assert caught.value.field == field
    rows = read_rows(spec_of(recipe), raw_rows(recipe), TOKENIZER)
    with pytest.raises(BadRequest):
        training.admit(recipe, "t", spec_of(recipe, loss=loss), rows)
    assert executor.banks.taken == 0


def test_a_token_that_the_base_lacks_is_named_before_it_reaches_the_base(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    training = MixedTraining(executor, budget_tokens=512)
    bad: dict[str, JsonValue] = {"prompt": "a", "completion_tokens": [3, 96], "weights": [1, 1]}
    spec = spec_of("weights")
    rows = read_rows(spec, [raw_rows("weights")[0], bad], TOKENIZER)
    with pytest.raises(BadDataset, match="row 2 has token 96, and the base has 96 tokens"):
        training.admit("w", "t", spec, rows)
    assert executor.banks.taken == 0


def test_a_pair_must_fit_into_one_micro_batch(make_executor: MakeExecutor) -> None:
    row: dict[str, JsonValue] = {"prompt": "a" * 30, "chosen": "b", "rejected": "c"}
    spec = spec_of("dpo")
    rows = read_rows(spec, [raw_rows("dpo")[0], row], TOKENIZER)
    with pytest.raises(BadDataset, match="row 2 has 64 tokens, more than this trainer's 32"):
        MixedTraining(make_executor(), budget_tokens=32).admit("d", "t", spec, rows)
    training = MixedTraining(make_executor(), budget_tokens=64)
    training.admit("d", "t", spec, rows)
    train(training)
    assert training.runs["d"].step == 4


def test_json_of_every_form_survives_the_store() -> None:
    from openmint.datasets import canonical_dataset, read_json_lines

    for recipe in RECIPES:
        rows = raw_rows(recipe)
        data = canonical_dataset(rows).data
        assert read_json_lines(data) == json.loads(json.dumps(rows))
