"""The jobs of `benchmarks.gpu`, by value: which rows each gives, their targets, its seconds.

Nothing here imports JAX: that is left to the process of a job.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

# Targets of sizes and seconds are those of an H100.
IMAGES, SHARE, DRAWN = "at least 2400", "at least 30", "at least 200"
BATCHES = (256, 512, 128, 64)
PRECISIONS = ("bfloat16", "TF32", "float32")


class Job(NamedTuple):
    """One process: `rows` by name with unit and target; `kind` says beside what it may run."""

    name: str
    part: str
    kind: str
    seconds: int
    rows: dict[str, tuple[str, str]]
    run: Callable[..., Any]


def late(module: str, function: str, *args: Any, **known: Any) -> Callable[..., Any]:
    """A function of a module that is imported when it is called."""

    def call(say: Any) -> Any:
        return getattr(import_module(f"benchmarks.{module}"), function)(say, *args, **known)

    return call


def jobs_of(*, tiny: bool, chapters: bool) -> list[Job]:
    """All jobs, in the order in which they begin."""
    return [*correctness(tiny), *(chapter_jobs() if chapters else ()), *speed(tiny)]


def correctness(tiny: bool) -> list[Job]:
    make = partial(Job, part="correctness", kind="together")
    jobs = []
    # As in the tests; in float32, where D is a difference of large numbers, digits are lost.
    limits = {64: ("at most 1e-9", "at most 1e-10"), 32: ("at most 1e-2", "at most 2e-5")}
    for bits, (close, exact) in limits.items():
        rows = {
            f"golden losses, float{bits}": ("relative error", close),
            f"golden samplers, float{bits}": ("relative error", close),
        }
        run = late("gpu_correct", "golden", bits, tiny)
        jobs.append(make(f"golden{bits}", seconds=90, rows=rows, run=run))
        rows = {f"golden networks, float{bits}": ("of the largest entry", exact)}
        if bits == 32:
            rows |= {"golden networks, TF32": ("of the largest entry", "")}
        else:
            drawn = {"drawn networks with gradients, float64": ("of the largest entry", exact)}
            run = late("gpu_correct", "drawn_networks", tiny)
            jobs.append(make("drawn64", seconds=120, rows=drawn, run=run))
        run = late("gpu_correct", "networks", bits, tiny)
        jobs.append(make(f"networks{bits}", seconds=120, rows=rows, run=run))
        limit = "at most 1e-6" if bits == 64 else "at most 1e-3"
        rows = {
            f"log-likelihood, {law}, float{bits}": ("nats of error", limit)
            for law in ("Gaussian", "mixture")
        }
        run = late("gpu_correct", "likelihood", bits)
        jobs.append(make(f"likelihood{bits}", seconds=40, rows=rows, run=run))
    rows = {
        "two moons, 1,000 simulations": ("nats", ""),
        "two moons, 1,000 simulations, C2ST": ("", "" if tiny else "at most 0.58"),
        "two moons, 1,000 simulations, fit": ("s", ""),
    }
    jobs.append(make("fit", seconds=120, rows=rows, run=late("gpu_correct", "fit", tiny)))
    rows = {"killed and resumed": ("largest difference", "at most 0")}
    jobs.append(make("kill", seconds=60, rows=rows, run=late("gpu_correct", "kill_and_resume")))
    return jobs


def chapter_jobs() -> list[Job]:
    files = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    return [
        Job(
            f"chapter{file.stem[:2]}",
            part="chapters",
            kind="together",
            seconds=180,
            rows={f"chapter {file.stem[:2]}": ("s", "")},
            run=late("gpu_correct", "chapter", str(file)),
        )
        for file in files
    ]


def speed(tiny: bool) -> list[Job]:
    batches = (4,) if tiny else BATCHES
    first, *rest = batches
    jobs = [torch(first, tiny), training(first, "bfloat16", tiny), drawing(first, tiny)]
    jobs += [training(first, name, tiny) for name in PRECISIONS[1:]]
    jobs += [training(batch, "bfloat16", tiny) for batch in rest]
    jobs += parts(tiny)
    jobs += [torch(batch, tiny) for batch in rest]
    jobs += [training(batch, name, tiny) for batch in rest for name in PRECISIONS[1:]]
    jobs.append(training(64, "bfloat16", tiny, adm=True))
    for batch in batches:
        pairs = [("DDPM++", f"training, bfloat16, batch {batch}")]
        pairs += [("PyTorch", f"training, compiled, bfloat16, batch {batch}")]
        rows = {f"training, bfloat16, over torch.compile, batch {batch}": ("", "at least 1")}
        run = lambda _, pairs=pairs: pairs
        ratio = {"part": "DDPM++", "kind": "ratio", "seconds": 0}
        jobs.append(Job(f"ratio{batch}", **ratio, rows=rows, run=run))
    return jobs


def training(batch: int, precision: str, tiny: bool, adm: bool = False) -> Job:
    what = f"training, {precision}, batch {batch}"
    best = precision == "bfloat16" and batch == BATCHES[0] and not adm
    rows = {
        what: ("images/s", IMAGES if best else ""),
        f"{what}: of the measured peak": ("%", SHARE if best else ""),
        f"{what}: matrix peak": ("TFLOP/s", ""),
        f"{what}: peak memory": ("GiB", ""),
        f"{what}: first chunk": ("s", ""),
    }
    part, name = ("ADM", "adm") if adm else ("DDPM++", "train")
    return Job(
        f"{name}{batch}-{precision}",
        part=part,
        kind="alone",
        seconds=150 if adm else 75,
        rows=rows,
        run=late("gpu_speed", "train_rows", batch, precision, tiny=tiny, adm=adm),
    )


def drawing(batch: int, tiny: bool) -> Job:
    what = f"sampling, bfloat16, 35 calls, batch {batch}"
    rows = {what: ("images/s", "" if tiny else DRAWN), f"{what}: peak memory": ("GiB", "")}
    run = late("gpu_speed", "sample_rows", batch, tiny)
    return Job(f"sample{batch}", part="DDPM++", kind="alone", seconds=50, rows=rows, run=run)


def torch(batch: int, tiny: bool) -> Job:
    """The first compiles while other jobs run, and is timed when it is told to."""
    first = batch == BATCHES[0] or tiny
    rows = {"output beside JAX's, small network": ("", "at most 1e-4")} if first else {}
    for how in ("eager", "compiled"):
        what = f"training, {how}, bfloat16, batch {batch}"
        rows |= {what: ("images/s", ""), f"{what}: peak memory": ("GiB", "")}
    return Job(
        f"torch{batch}",
        part="PyTorch",
        kind="prepared" if first else "alone",
        seconds=90,
        rows=rows,
        run=late("gpu_speed", "torch_rows", batch, tiny=tiny, first=first),
    )


def parts(tiny: bool) -> list[Job]:
    """What is small: one row each of sampler, likelihoods, and a fit of 100,000."""
    make = partial(Job, part="small", kind="alone")
    count = "200" if tiny else "100,000"
    return [
        make(
            "small-sampler",
            seconds=20,
            rows={"sampler of an MLP over its 35 calls": ("", "at most 1")},
            run=late("gpu_speed", "sampler_row", tiny),
        ),
        make(
            "small-likelihood",
            seconds=60,
            rows={
                "log-likelihood of an MLP, 2 dimensions": ("points/s", ""),
                "log-likelihood of a U-Net, 1 probe": ("images/s", ""),
            },
            run=late("gpu_speed", "likelihood_rows", tiny),
        ),
        make(
            "small-fit",
            seconds=90,
            rows={f"fit_posterior, two moons, {count} simulations": ("s", "")},
            run=late("gpu_speed", "fit_row", tiny),
        ),
    ]
