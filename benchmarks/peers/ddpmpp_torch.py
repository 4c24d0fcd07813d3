"""Training of a DDPM++ in PyTorch as one would write it for a GPU: the peer of `benchmarks.gpu`.

Channels last, bfloat16 by autocast, fused Adam, an average of the weights, the network of
`unet_torch` with dropout and labels of augmentation; eager, and under `torch.compile`.
"""

import time

import torch
from torch.nn import functional as F
from unet_torch import unet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def machine():
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return f"{name}, torch {torch.__version__}"


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def place(state):
    """Weights on the device, those of convolutions with their channels last."""
    placed = {}
    for name, array in state.items():
        weight = torch.tensor(array, device=DEVICE)
        last = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        placed[name] = weight.to(memory_format=last)
    return placed


@torch.no_grad()
def output(state, x, c_noise, labels):
    """Of one forward pass in float32, to compare."""
    torch.backends.cudnn.allow_tf32 = False
    x, c_noise, labels = (torch.tensor(a, device=DEVICE) for a in (x, c_noise, labels))
    return unet(place(state), x, c_noise, labels).cpu().numpy()


def augmented(x):
    """Images after a random affine map each, and nine labels."""
    labels = torch.randn(len(x), 9, device=x.device)
    maps = torch.eye(2, 3, device=x.device) + 0.05 * labels[:, :6].reshape(-1, 2, 3)
    grid = F.affine_grid(maps, x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False), labels


def loss_of(state, x, labels, dropout):
    """EDM's loss with sigma_data = 0.5; outside the network everything is float32."""
    sigma = torch.exp(1.2 * torch.randn(len(x), 1, 1, 1, device=x.device) - 1.2)
    noisy, total = x + sigma * torch.randn_like(x), torch.sqrt(sigma**2 + 0.25)
    image = (noisy / total).to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, torch.bfloat16):
        raw = unet(state, image, sigma[:, 0, 0, 0].log() / 4, labels, dropout=dropout)
    denoised = 0.25 / total**2 * noisy + 0.5 * sigma / total * raw.float()
    return ((total / (0.5 * sigma)) ** 2 * (denoised - x) ** 2).mean()


def trainer(state, batch, side, dropout, compiled):
    """A function that takes one step."""
    weights = place(state)
    average = [weight.clone() for weight in weights.values()]
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3, fused=DEVICE == "cuda")
    loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    images = 0.5 * torch.randn(4 * batch, 3, side, side, device=DEVICE)

    def step():
        x = images[torch.randint(len(images), (batch,), device=DEVICE)]
        x, labels = augmented(x)
        optimizer.zero_grad()
        loss(weights, x, labels, dropout).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(weights.values()), 0.01)

    return step


def prepare(state, batch, side, dropout, tiny):
    """For each way a function that times it; the first steps, which compile, are done here."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    runs = {}
    for how in ("eager", "compiled"):
        start = time.perf_counter()
        try:
            step = trainer(state, batch, side, dropout, compiled=how == "compiled")
            for _ in range(1 if tiny else 3):
                step()
            wait()
        except Exception as error:
            note = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
            runs[how] = lambda note=note: (None, None, note)
            continue
        note = f"the first steps took {time.perf_counter() - start:.0f} s"
        runs[how] = lambda step=step, note=note: timed(step, batch, 1 if tiny else 20, note)
    return runs


def timed(step, batch, count, note):
    """Images a second, GiB at the worst moment, and a note."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step()  # cuDNN may choose anew, now that the device is free
    wait()
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    rate = batch * count / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    return rate, peak, note
