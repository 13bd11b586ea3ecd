"""`edge-infer build`: makes the TensorRT engine of this device, and looks after the cache of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle
    from edge_infer.engine import PrecisionChoice
    from edge_infer.engine.tensorrt.cache import PlanCache
    from edge_infer.engine.tensorrt.plans import ReadyPlan


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["auto", "int8", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="auto keeps INT8 only if it passed its gate and is faster than FP16: it builds both, and times them "
    "on the bundle's golden chips; a bundle without any gets INT8 untimed.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Largest batch; give the same to run. [default: 64]"
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of the plans. [default: the user's cache]"
)
@click.option("--force", is_flag=True, help="Build and time anew, whatever the cache holds.")
@click.option("--list", "wants_list", is_flag=True, help="List the plans (of MODEL, or all); build nothing.")
@click.option(
    "--prune",
    is_flag=True,
    help="Remove plans that this machine cannot use, with MODEL also of its other versions; build nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def build(
    model: Path | None,
    *,
    precision: PrecisionChoice,
    batch: int | None,
    cache: Path | None,
    force: bool,
    wants_list: bool,
    prune: bool,
    as_json: bool,
) -> None:
    """Build the TensorRT engine of MODEL for this device, or find it built.

    `edge-infer run` does the same when it needs to; building ahead spares the wait in the field. Plans lie in
    ~/.cache/edge-infer/engines, or where EDGE_INFER_CACHE says.
    """
    if wants_list and prune:
        raise click.UsageError("--list and --prune are two things; give one of them")
    if model is None and not (wants_list or prune):
        raise click.UsageError("name a MODEL, NAME.edgemodel; or use --list or --prune")
    from edge_infer.bundle import open_bundle
    from edge_infer.engine.tensorrt.cache import PlanCache, cache_folder

    bundle = None if model is None else open_bundle(model)
    plans = PlanCache(cache_folder(cache))
    if wants_list:
        _list(plans, bundle, as_json=as_json)
    elif prune:
        _prune(plans, bundle, as_json=as_json)
    elif bundle is not None:
        plan = _build(bundle, precision, batch, plans.folder, force=force)
        click.echo(json.dumps(_facts(plan), indent=1) if as_json else _describe(plan))


def _build(
    bundle: Bundle, precision: PrecisionChoice, batch: int | None, folder: Path, *, force: bool
) -> ReadyPlan:
    from contextlib import closing

    from edge_infer.device.cuda import CudaDevice
    from edge_infer.device.gpu import probe_gpu
    from edge_infer.engine import GpuOptions
    from edge_infer.engine.tensorrt.bindings import load_tensorrt
    from edge_infer.engine.tensorrt.plans import largest_that_fits, ready_plan
    from edge_infer.engine.tensorrt.runtime import DEFAULT_BATCH, make_meter

    gpu = probe_gpu()
    library = load_tensorrt(gpu.driver)
    wanted = batch or DEFAULT_BATCH
    with closing(CudaDevice(gpu)) as device:

        def make(size: int) -> ReadyPlan:
            measure = make_meter(device, library, bundle, batch=size, options=GpuOptions())
            return ready_plan(
                bundle,
                precision=precision,
                batch=size,
                gpu=gpu,
                say=_say,
                measure=measure,
                cache=folder,
                force=force,
            )

        plan = largest_that_fits(wanted, make, _say)
    if plan.batch < wanted:
        _say(f"batch {wanted} did not fit the GPU's memory; give --batch {plan.batch} to run as well")
    return plan


def _list(plans: PlanCache, bundle: Bundle | None, *, as_json: bool) -> None:
    from edge_infer.engine.tensorrt import inventory

    entries = inventory.plans_of(plans, bundle)
    if as_json:
        click.echo(json.dumps([inventory.describe(entry) for entry in entries], indent=1))
        return
    click.echo(f"{plans.folder}: {len(entries)} plans")
    for entry in entries:
        click.echo(f"  {inventory.line(entry)}")


def _prune(plans: PlanCache, bundle: Bundle | None, *, as_json: bool) -> None:
    from edge_infer.device.gpu import probe_gpu
    from edge_infer.engine.tensorrt import inventory
    from edge_infer.engine.tensorrt.bindings import load_tensorrt
    from edge_infer.errors import OutputError

    gpu = probe_gpu()
    try:
        removed = inventory.prune(plans, bundle, gpu=gpu, tensorrt=load_tensorrt(gpu.driver).text, say=_say)
    except OSError as error:
        raise OutputError(f"{plans.folder} cannot be cleaned: {error.strerror or error}") from error
    if as_json:
        facts = [{"path": str(one.path), "bytes": one.size_bytes, "why": one.why} for one in removed]
        click.echo(json.dumps(facts, indent=1))
        return
    freed = sum(one.size_bytes for one in removed) / 1e6
    click.echo(f"{plans.folder}: {len(removed)} removed, {freed:.1f} MB freed")
    for one in removed:
        click.echo(f"  {one.path.name}: {one.why}")


def _facts(plan: ReadyPlan) -> dict[str, Any]:
    return {
        "path": None if plan.path is None else str(plan.path),
        "precision": plan.precision,
        "batch": plan.batch,
        "why": plan.why,
        "built": plan.built,
        "record": plan.record.to_json(),
    }


def _describe(plan: ReadyPlan) -> str:
    record = plan.record
    layers = "" if record.layers is None else f"\n  {record.layers.describe()}"
    done = f"built in {record.build_seconds:.1f} s" if plan.built else f"built {record.created}, still good"
    return (
        f"{plan.path or 'not kept'}: {done}\n  {plan.why}\n  batch 1 to {plan.batch}, "
        f"{record.plan_bytes / 1e6:.1f} MB, {record.key.gpu}, TensorRT {record.key.tensorrt}{layers}"
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
