"""2,048 policies on two engines: ours beside stock vLLM with on-demand loading behind three kinds of routers.

All engines have the same cores, limits, adapters and repaired kernels. Peers also run with the best cap on requests in
flight that is found for them, because under overload a cap alone is most of what can be won.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.many_policies.rows import RowBook


def run(options: Options, report: ReportBuilder) -> None:
    """All rows that are not kept yet, then the bounds."""
    from load.many_policies.plan import extent
    from load.many_policies.rows import RowBook, comma_separated, markdown
    from load.many_policies.verdict import DENSE, EXPERTS, judge
    from load.stock.vllm_router import VllmRouter
    from load.waves.arena import dense_base, experts_base

    wanted = extent(is_quick=options.is_quick, seed=options.seed)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    book = RowBook(options.keep / "rows.json" if options.keep is not None else None)
    kinds = [(dense_base(), DENSE)]
    if options.is_quick:
        report.note("experts are raced in full runs alone")
    else:
        kinds.append((experts_base(), EXPERTS))
    for folder, bounds in kinds:
        base = folder.name
        asyncio.run(_race(folder, options, book))
        missing = VllmRouter.missing()
        if missing and not options.is_quick:
            report.miss_peer("vllm-router", missing, f"{base}: consistent hashing raced", 1)
        judge(book, base, bounds, wanted, report)
        report.note(f"{base}: measured capacity {book.capacity_rps.get(base, float('nan')):.3g} req/s, warm")
    print(markdown(book.rows()))
    if options.keep is not None:
        (options.keep / "rows.csv").write_text(comma_separated(book.rows()))
    _say_source(report)


def _say_source(report: ReportBuilder) -> None:
    from load.workloads.trace_files import SETTING, find_traces

    if find_traces() is None:
        report.note(f"no traces here ({SETTING} names their folder): arrivals from their published parameters")
    report.note("arrivals: streams of ServeGen clients; burst: the Azure code-completion trace")


async def _race(base_folder: Path, options: Options, book: "RowBook") -> None:
    from load.many_policies.field import Field
    from load.many_policies.plan import extent, planned_rows
    from load.stack.engine_limits import EngineLimits
    from load.stock.vllm_router import VllmRouter

    base, wanted = base_folder.name, extent(is_quick=options.is_quick, seed=options.seed)
    scratch = Path(tempfile.mkdtemp(prefix="openmint-many-policies-"))
    field = Field(base_folder, scratch, EngineLimits(), options.keep / "logs" if options.keep is not None else None)
    try:
        for planned in planned_rows(base, wanted, book):
            if planned.contender.rule == "hash" and VllmRouter.missing():
                continue
            if planned.key in book or not options.wants(planned.key):
                continue
            if base not in book.capacity_rps:
                book.capacity_rps[base] = await field.capacity_rps(options.seed)
                book.save()
            row = await field.run(planned, book.capacity_rps[base], wanted.window_s)
            book.add(row)
            print(row.line(), flush=True)
    finally:
        await field.close()
        shutil.rmtree(scratch, ignore_errors=True)


MANY_POLICIES = Scenario(
    "many-policies", "2,048 policies on two engines, beside stock vLLM behind three kinds of routers", run
)
