"""A dry run: what a job and its data would cost, and whether they can be trained at all.

Run as a child process, `python -m openmint_trainer.estimate --base-folder … --spec file.json`, so that the caller
needs no torch. Prints JSON; exits with 1 and `{"error": {code, detail, field}}` for a job that would be refused.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError
from transformers import AutoTokenizer

from openmint.adapters.expert_layout import Shape3
from openmint.bases import read_base_folder
from openmint.datasets import JsonRow, check_rows, read_json_lines
from openmint.errors import BadDataset, BadRequest, OpenmintError
from openmint.events import TrainRequested
from openmint.row_forms import check_form
from openmint.training_targets import choose_targets, last_part, trained_paths
from openmint_trainer.banks import RANK_CLASSES
from openmint_trainer.losses import find_loss
from openmint_trainer.packing import check_budget, check_vocabulary
from openmint_trainer.recipes import RECIPES, read_rows
from openmint_trainer.rows import Row

ModuleTable = dict[str, tuple[int, int]]

FLOP_PER_PARAMETER_AND_TOKEN = 4
"""Two forward and two for the gradient of the inputs; a frozen weight has no gradient of its own."""

CPU_FLOP_PER_S = 60e9
"""One AVX2 core in float32 over a whole step of a 135M base: 50e9 on a busy machine, 70e9 on an idle one."""

BYTES_PER_ADAPTER_ELEMENT = 18
"""Master, gradient, two moments in float32 and the compute copy."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a job. Seconds are of one CPU core; memory is beside what the resident base takes."""

    rows: int
    tokens_in_dataset: int
    trained_tokens_in_dataset: int
    longest_row: int
    steps: int
    epochs: float
    tokens: int
    reference_tokens: int
    """Tokens that the base is asked about once, without a gradient, because the loss compares with it."""
    tokens_per_s: float
    seconds: float
    adapter_parameters: int
    adapter_bytes: int
    slot_bytes: int
    targets: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(
    spec: TrainRequested,
    rows: Sequence[Row],
    modules: ModuleTable,
    tokens_per_s: float | None = None,
    experts: Mapping[str, Shape3] | None = None,
) -> Estimate:
    """Add up what the job's steps will process. `rows` are as the recipe reads them, two for each preference.

    Raises: BadRequest for unknown targets or a loss that the recipe does not take.
    """
    recipe = RECIPES[spec.recipe]
    loss, config = recipe.check(spec)
    fused = experts or {}
    paths = trained_paths(modules, fused)
    targets = choose_targets(spec.adapter.targets, paths)
    # An adapter's elements for each rank, by path.
    widths = {path: count * (out + into) for path, (count, out, into) in fused.items()}
    widths |= {path: sum(modules[path]) for path in paths if path in modules}
    chosen = sum(width for path, width in widths.items() if last_part(path) in targets)
    rank = spec.adapter.rank
    rank_class = next(c for c in RANK_CLASSES if c >= rank)
    dataset_tokens = sum(len(row) for row in rows)
    seen_rows = spec.training.steps * spec.training.batch_rows
    count = len(rows) // recipe.unit_rows
    tokens = round(dataset_tokens / count * seen_rows)
    base_parameters = sum(out * into for out, into in modules.values())
    speed = tokens_per_s or CPU_FLOP_PER_S / (FLOP_PER_PARAMETER_AND_TOKEN * base_parameters)
    epochs = seen_rows / count
    has_reference = "reference_logprobs" in find_loss(loss).needs_with(config)
    reference_tokens = round(dataset_tokens * min(1.0, epochs)) if has_reference else 0
    return Estimate(
        rows=count,
        tokens_in_dataset=dataset_tokens,
        trained_tokens_in_dataset=sum(row.trained_tokens for row in rows),
        longest_row=max(len(row) for row in rows),
        steps=spec.training.steps,
        epochs=round(epochs, 2),
        tokens=tokens,
        reference_tokens=reference_tokens,
        tokens_per_s=round(speed, 1),
        seconds=round((tokens + reference_tokens / 2) / speed, 1),
        adapter_parameters=rank * chosen,
        adapter_bytes=2 * rank * chosen,
        slot_bytes=BYTES_PER_ADAPTER_ELEMENT * rank_class * sum(widths.values()),
        targets=targets,
        warnings=tuple(_warnings(spec, count, epochs)),
    )


def _warnings(spec: TrainRequested, count: int, epochs: float) -> list[str]:
    found: list[str] = []
    if epochs > 10:
        found.append(f"every row is seen {epochs:.0f} times: the policy will learn the rows by heart")
    if epochs < 1:
        found.append(f"only {100 * epochs:.0f} % of the rows are seen")
    if count < spec.training.batch_rows:
        found.append(f"a batch of {spec.training.batch_rows} holds rows more than once: there are {count}")
    return found


def _read_rows(spec: TrainRequested, path: Path | None) -> list[JsonRow]:
    if path is not None:
        rows: list[JsonRow] = list(read_json_lines(path.read_bytes()))
    elif spec.dataset.rows is not None:
        rows = list(spec.dataset.rows)
    else:
        raise BadDataset("give the rows in the spec or with --data", field="dataset")
    check_rows(rows)
    check_form(rows, spec.recipe)
    return rows


def _read_spec(path: Path) -> TrainRequested:
    try:
        return TrainRequested.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{field}: {first['msg']}" if field else first["msg"], field=field or None) from error


def measure_speed(base_folder: Path, rows: Sequence[Row], spec: TrainRequested) -> float:
    """Tokens per second of one real step on this machine, after one to warm up."""
    import time

    from openmint_trainer.banks import AdapterShape
    from openmint_trainer.executor import Executor, Work
    from openmint_trainer.references import ReferenceCache
    from openmint_trainer.resident_base import load_base, use_one_thread
    from openmint_trainer.rows import split_batch

    use_one_thread()
    executor = Executor(load_base(base_folder, spec.base, "sha256:" + "0" * 64, "auto"), max_slots=1)
    targets = choose_targets(spec.adapter.targets, executor.base.modules)
    policy = executor.open(AdapterShape(spec.adapter.rank, spec.adapter.alpha, targets), spec.training.seed)
    recipe = RECIPES[spec.recipe](rows, spec, policy.generator)
    portion = split_batch(recipe.next_batch(), 512, recipe.unit_rows)[0]
    if recipe.needs_reference:
        portion = ReferenceCache(rows, executor.reference_logprobs).complete(portion)
    work = [Work(policy, portion, recipe.loss, recipe.config)]
    elapsed_s = 0.0
    for _ in range(2):
        started_s = time.perf_counter()
        executor.forward_backward(work)
        elapsed_s = time.perf_counter() - started_s
    return portion.tokens / elapsed_s


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check a job and its data, and estimate its cost")
    parser.add_argument("--base-folder", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True, help="a TrainRequested as JSON")
    parser.add_argument("--data", type=Path, help="JSON Lines; instead of rows in the spec")
    parser.add_argument("--token-budget", type=int, default=2048, help="the trainer's OPENMINT_TRAINER_TOKEN_BUDGET")
    parser.add_argument("--tokens-per-s", type=float, help="use this speed")
    parser.add_argument("--measure", action="store_true", help="take one real step to learn the speed")
    arguments = parser.parse_args()
    try:
        spec = _read_spec(arguments.spec)
        facts = read_base_folder(arguments.base_folder)
        tokenizer = AutoTokenizer.from_pretrained(arguments.base_folder, local_files_only=True)
        rows = read_rows(spec, _read_rows(spec, arguments.data), tokenizer)
        choose_targets(spec.adapter.targets, trained_paths(facts.modules, facts.experts))
        unit_rows = RECIPES[spec.recipe].unit_rows
        check_budget(rows, arguments.token_budget, unit_rows)
        check_vocabulary(rows, facts.vocab_size, unit_rows)
        speed = arguments.tokens_per_s
        if arguments.measure:
            speed = measure_speed(arguments.base_folder, rows, spec)
        result = estimate(spec, rows, dict(facts.modules), speed, facts.experts)
    except OpenmintError as error:
        print(json.dumps({"error": {"code": error.code, "detail": error.detail, "field": error.field}}))
        return 1
    print(json.dumps(asdict(result), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
