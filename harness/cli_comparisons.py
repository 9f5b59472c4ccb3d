"""The command line's verbs of comparisons: compare, gate and selftest. torch is never imported here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from harness.errors import InvalidInputError, Problem, gathered, refuse
from harness.verbs import here
from harness.verbs import specs as options
from harness.verbs.console import FAILED, WRONG, errors, output, print_json, tell


def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.toml | RUN RUN…]",
            help="A file of arms to run now; or stored runs, or two result folders.",
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="[NAME=]OPTIMIZER", help="One side, to run now. Repeatable."),
    ] = None,
    workload: options.Workload = None,
    size: options.Size = None,
    strategy: options.Strategy = None,
    precision: options.Precision = None,
    nproc: options.Nproc = None,
    device: options.Device = None,
    lr: options.Lr = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="From the arms' start, proofs not included: 120s, 4m. Default 120s."),
    ] = None,
    margin: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Difference that does not matter. Default 2.5%.")
    ] = None,
    self_check: Annotated[
        bool | None,
        typer.Option(
            "--self-check/--no-self-check",
            help="Let the first arm's code ride along twice. Default: as the file says, else where CI is set.",
        ),
    ] = None,
    different_training: Annotated[
        bool, typer.Option("--allow-different-training", help="Compare arms whose losses part, too.")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For any one answer of an arm.")] = 300.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start every launch with new interpreters; slower.")
    ] = False,
    apart: Annotated[
        bool, typer.Option("--apart", help="One arm in memory at a time, in ABBA order, from the start.")
    ] = False,
    stored: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="Analyse a stored comparison again; or latest.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Prove the arms right first.")
    ] = True,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write it for a pull request, too.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="SVG", help="Write the forest plot, too.")] = None,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Compare arms live, interleaved on this machine, with an interval and a verdict; or stored runs."""
    from harness.store import Store
    from harness.verbs import arm_plans, compared, comparing
    from harness.verbs import arms as reading
    from launch.building import Kernels

    store = Store(results)
    live = bool(arms) or (len(words or []) == 1 and str((words or [""])[0]).endswith(".toml"))
    given = options.axes(
        workload=workload,
        size=size,
        strategy=strategy,
        precision=precision,
        world_size=nproc,
        device=device,
        lr=lr,
        seed=seed,
    )
    problems: list[Problem] = []
    for option, named in (("--markdown", markdown), ("--svg", svg)):
        with gathered(problems):
            here.refuse_unwritable(option, named)
    with gathered(problems):
        timeout = reading.timeout(timeout)
    words_of_fields = {options.OPTION_WORDS.get(field, f"--{field}"): True for field in given}
    idle = {**words_of_fields, "--set": settings, "--budget": budget, "--margin": margin}
    if stored is not None:
        with gathered(problems):
            compared.refuse_idle("--from", {**idle, "--arm": arms, " ".join(words or []): words})
        refuse(problems)
        name, comparison = comparing.load(store, stored)
        raise typer.Exit(compared.show_stored(name, comparison, store, markdown, svg, as_json=as_json))
    if not live:
        with gathered(problems):
            compared.refuse_idle("stored runs", {**idle, "--svg": svg})
        refuse(problems)
        raise typer.Exit(compared.stored(words or [], store, markdown, as_json=as_json))
    with gathered(problems):
        asked = reading.asked(words or [], arms or [], given, settings or [], margin, budget)
    refuse(problems)
    comparing.refuse_places(asked.arms)
    plans = arm_plans.plan_arms(asked.arms)
    sides = comparing.planned(asked.arms, plans.plan)
    store.check_writable()
    for line in comparing.alike(sides):
        tell(line)
    comparing.build_kernels(plans.plan.cells, Kernels(tell))
    proofs, wrong = comparing.proved(sides, plans, store, tell, asked=verify, timeout_s=timeout)
    if wrong is not None:
        errors.print(f"optbench: not compared: {wrong}", markup=False, style="red")
        raise typer.Exit(WRONG if any(each["outcome"] == "wrong" for each in proofs) else FAILED)
    from launch import comparing as live_comparison

    kept = comparing.Kept(store, tell)
    comparison = live_comparison.compare(
        sides,
        margin=asked.margin,
        budget_s=asked.budget_s,
        seed=sides[0].spec.seed,
        self_check=reading.rides_along(asked.file, os.environ.get("CI"), option=self_check),
        timeout_s=timeout,
        different_training=different_training,
        fresh=fresh,
        resident=not apart,
        proofs=proofs,
        told=tell,
        kept=kept.keep,
    )
    kept.keep(comparison)
    raise typer.Exit(compared.show(kept, comparison, store, markdown, svg, as_json=as_json))


def gate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML: cells, margins, baselines: docs/gate.md.")],
    update_baseline: Annotated[
        bool,
        typer.Option("--update-baseline", help="Count every cell and write the baseline of counts; gate nothing."),
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="MD", help="Write the verdict for a pull request, too.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", envvar="OPTBENCH_VERIFY", help="Ask for a certificate of every optimizer."
        ),
    ] = True,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Say whether anything got worse: counts, drift, speed, memory, convergence, correctness; one verdict."""
    from harness.gating.file import load
    from harness.gating.model import EXIT_CODES
    from harness.reports import gate as report
    from harness.store import Store
    from harness.verbs import baselines, gating
    from launch.comparing import compare

    problems: list[Problem] = []
    with gathered(problems):
        here.refuse_unwritable("--markdown", markdown)
    with gathered(problems):
        asked = load(file, options.names())
    refuse(problems)
    store = Store(results)
    specs = [cell.spec for cell in asked.cells]
    machine = here.machine(None, specs)
    verify = verify and asked.settings.verify
    session = gating.Session(asked, here.plan(specs, machine), machine, store, tell, compare, verify=verify)
    try:
        if update_baseline:
            changes, notes = baselines.update(session)
            if as_json:
                print_json({"baseline": str(asked.baseline.counts), "changes": changes, "notes": notes})
            else:
                for line in [f"wrote {asked.baseline.counts}", *changes, *notes]:
                    output.print(line, soft_wrap=True, markup=False)
            return
        store.check_writable()
        found = gating.gate(session)
    except OSError as error:
        errors.print(f"optbench: cannot write {error.filename}: {error}", markup=False, style="red")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        errors.print("optbench: interrupted: the gate has no verdict", style="red")
        raise
    if as_json:
        print_json(report.document(found))
    else:
        output.print(report.render(found), crop=False)
    if markdown is not None:
        markdown.write_text(report.markdown(found), encoding="utf-8")
    raise typer.Exit(EXIT_CODES[found.verdict])


def selftest(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            metavar="SETTING",
            help="alone, neighbour, two-ranks, late-neighbour. Repeatable. Default: all.",
        ),
    ] = None,
    launches: Annotated[
        int,
        typer.Option(min=0, help="In each setting's pool, which replays draw from: 36 or more, or 0 for none."),
    ] = 48,
    gates: Annotated[
        int, typer.Option(min=0, help="Complete live gates of each of four kinds, in each setting.")
    ] = 20,
    sittings: Annotated[
        int, typer.Option(help="Of forked launches, set beside a third as many of fresh ones; two or more, or 0.")
    ] = 6,
    replays: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 2000,
    stored: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="ID", help="Replay stored pools; run nothing. Repeatable."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="MD", help="Write the table as Markdown, too.")] = None,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Measure this machine's comparisons: false alarms, planted slowdowns, peers' methods. Hours; see --gates."""
    from harness.store import Store
    from harness.verbs import comparing, measuring
    from launch.selftest import FEWEST, Setting

    store = Store(results)
    here.refuse_unwritable("--markdown", markdown)
    known = get_args(Setting)
    unknown = [each for each in settings or [] if each not in known]
    if unknown:
        raise InvalidInputError([Problem("--setting", f"no setting {unknown[0]}", ", ".join(known))])
    if 0 < launches < FEWEST:
        raise InvalidInputError(
            [Problem("--launches", f"{launches} are too few to draw from", f"{FEWEST} or more, or 0 for none")]
        )
    if sittings == 1 or sittings < 0:
        raise InvalidInputError(
            [Problem("--sittings", f"{sittings} show no difference", "2 or more, or 0 for none")]
        )
    if stored:
        rows = measuring.replayed("stored", [comparing.load(store, each)[1] for each in stored], replays)
    else:
        chosen: Any = list(dict.fromkeys(settings or known))
        rows = measuring.measured(chosen, measuring.Amounts(launches, gates, sittings, replays), store, tell)
    if as_json:
        print_json(measuring.document(rows))
    else:
        output.print(measuring.table(rows))
    if markdown is not None:
        markdown.write_text(measuring.markdown(rows), encoding="utf-8")
    raise typer.Exit(1 if any(row.met is False for row in rows) else 0)
