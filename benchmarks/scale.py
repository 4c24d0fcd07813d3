"""Memory and time of the sampler against batch, dimension and number of steps.

    python -m benchmarks.scale

Each row is measured in a process of its own, since the peak of a process's memory never falls.
`memory_mb` is that peak above the same program at a batch of 1, give or take 10 MB. Rows "in
pieces" draw the same points by `jax.lax.map(draw, noise, batch_size=10_000)`, which needs the
memory of one piece.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.random as jr

import edm_tutorial as edm
from benchmarks.timing import pin, write

PIECE = 10_000
LIMIT_S = 600


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(batch: int, dim: int, steps: int, in_pieces: bool) -> tuple[float, float, float]:
    """CPU seconds to compile and to run, and the peak of memory in MB."""
    model = edm.Denoiser(edm.MLP(dim, key=jr.key(0)), edm.EDMPreconditioning(0.5))
    sigmas = edm.edm_sigmas(steps)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: jax.Array) -> jax.Array:
        one = lambda z: edm.sample(model, z, sigmas)
        return jax.lax.map(one, noise, batch_size=PIECE) if in_pieces else jax.vmap(one)(noise)

    noise = jax.block_until_ready(jr.normal(jr.key(1), (batch, dim)))
    start = time.process_time()
    compiled = draw.lower(model, noise).compile()
    middle = time.process_time()
    jax.block_until_ready(compiled(model, noise))
    return middle - start, time.process_time() - middle, peak_mb()


def cases() -> Iterator[tuple[str, int, int, int, bool]]:
    """What varies, and then batch, dimension, steps, and whether in pieces."""
    for batch in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000):
        yield "batch", batch, 2, 18, False
    for batch in (100_000, 1_000_000):
        yield "batch in pieces", batch, 2, 18, True
    for dim in (2, 8, 32, 128, 512, 2048, 4096):
        yield "dimension", 1_000, dim, 18, False
    for steps in (2, 18, 64, 256, 1024):
        yield "steps", 1_000, 2, steps, False


def rows() -> Iterator[dict]:
    idle = 0.0
    for varied, batch, dim, steps, in_pieces in cases():
        words = [str(batch), str(dim), str(steps), str(int(in_pieces))]
        command = [sys.executable, "-m", "benchmarks.scale", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:  # killed, most likely, where there is too little memory
            print(f"{varied} {words}: {done.stderr.splitlines()[-1:]}", flush=True)
        failed = [float("nan")] * 3
        numbers = failed if done.returncode else [float(word) for word in done.stdout.split()]
        compile_s, run_s, peak = numbers
        idle = idle or peak
        yield {
            "varied": varied,
            "batch": batch,
            "dimension": dim,
            "steps": steps,
            "compile_cpu_s": round(compile_s, 2),
            "run_cpu_s": round(run_s, 3),
            "memory_mb": round(peak - idle, 0),
        }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(*(int(word) for word in sys.argv[1:4]), sys.argv[4] == "1"))
    else:
        pin()
        write("scale", rows())
