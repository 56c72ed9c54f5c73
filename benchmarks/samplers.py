"""Which sampler, on which grid: error against network evaluations, on an exact problem and on a trained model.

    python benchmarks/samplers.py                          the mixture of Gaussians, all samplers and grids
    python benchmarks/samplers.py --model runs/demo/model  also a trained model, against its own limit

Prints tables in markdown, and writes docs/samplers.png and docs/schedules.png. Half a minute to a few minutes on a CPU.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion import grid, names
from sfumato.diffusion.samplers import Denoise, last, sampler
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Scales, Schedule, Sigmoid
from sfumato.streams import Stream

EVALUATIONS = (5, 10, 20, 50, 100)
CENTRES = torch.tensor([[-1.2, 0.3], [0.8, 1.1], [0.5, -0.9], [1.4, 0.1]], dtype=torch.float64)
SPREADS = torch.tensor([0.25, 0.15, 0.35, 0.2], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.2, 0.35, 0.15], dtype=torch.float64)
PLACES = (64, 64)
DOCS = Path(__file__).parent.parent / "docs"
PROMPTS = ["red heart", "grinning face", "flag: japan", "cat face", "red apple", "sun", "woman firefighter", "blue car"]


def mixture(schedule: Schedule) -> Denoise:
    """E[x_0 | x_t] where the two channels of every place come from a mixture of four Gaussians."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, o = (s.reshape(-1, 1, 1, 1) for s in schedule(t))
        total = a**2 * SPREADS**2 + o**2
        gap = x_t.movedim(1, -1)[..., None, :] - a[..., None] * CENTRES
        log = SHARES.log() - gap.square().sum(-1) / (2 * total) - total.log()
        means = CENTRES + (a * SPREADS**2 / total)[..., None] * gap
        return (log.softmax(-1)[..., None] * means).sum(-2).movedim(-1, 1)

    return denoise


def exact(schedule: Schedule, x: Tensor) -> Tensor:
    """Exact samples: where the flow takes x, by 1000 fine steps to a ratio of 0.001, on a schedule that reaches it."""
    flow = Linear()
    a, o = (float(s) for s in schedule(torch.ones((), dtype=torch.float64)))
    high = o / a if a else 1000.0
    t = flow.time(Scales.of(torch.linspace(math.log(high), math.log(1e-3), 1000).double()))
    if not a:
        t[0] = 1
    t = torch.cat([t, t.new_zeros(1)])
    return last(sampler("heun")(mixture(flow), x * (1 - float(t[0])) / a if a else x, grid.Grid(t, 1 - t, t, flow)))


def sliced(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Sliced Wasserstein distance of two sets of points (N, 2): the mean over directions of that of their projections."""
    angle = torch.arange(directions).double() * math.pi / directions
    sides = torch.stack([angle.cos(), angle.sin()])
    gaps = (a @ sides).sort(0).values - (b @ sides).sort(0).values
    return float(gaps.square().mean(0).sqrt().mean())


def steps_for(name: str, evaluations: int) -> int:
    """The largest number of steps that takes at most so many evaluations; 0 where there is none."""
    counts = (n for n in range(evaluations, 0, -1) if names.SAMPLERS[name].count(n) <= evaluations)
    return next(counts, 0)


def options(name: str, seeds: list[int]) -> dict[str, Any]:
    return {"noise": Stream(seeds)} if names.SAMPLERS[name].stochastic else {}


def on_mixture(schedule: Schedule) -> dict[tuple[str, str], list[float]]:
    """Distances to exact samples for every sampler on every grid, at each number of evaluations."""
    x = Stream([1]).normal((2, *PLACES), 0).double() * float(torch.hypot(*schedule(torch.ones(()).double())))
    flat: Callable[[Tensor], Tensor] = lambda y: y.movedim(1, -1).reshape(-1, 2)  # noqa: E731
    truth, found = flat(exact(schedule, x)), {}
    for name, traits in names.SAMPLERS.items():
        if not traits.evaluations:
            continue
        for way in names.GRIDS:
            runs = (
                last(
                    sampler(name)(
                        mixture(schedule), x, grid.grid(way)(schedule, steps_for(name, n)), **options(name, [2])
                    )
                )
                for n in EVALUATIONS
            )
            found[name, way] = [sliced(flat(y), truth) for y in runs]
    return found


def adaptively(schedule: Schedule) -> list[tuple[int, float]]:
    """(evaluations, distance) of the adaptive sampler at falling tolerances."""
    x = Stream([1]).normal((2, *PLACES), 0).double() * float(torch.hypot(*schedule(torch.ones(()).double())))
    truth, found = exact(schedule, x), []
    for tolerance in (0.1, 0.03, 0.01, 0.003, 0.001):
        calls = 0

        def counted(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return mixture(schedule)(x_t, t)

        y = last(sampler("adaptive")(counted, x, grid.default(schedule, 50), tolerance=tolerance))
        found.append((calls, sliced(y.movedim(1, -1).reshape(-1, 2), truth.movedim(1, -1).reshape(-1, 2))))
    return found


def on_model(
    folder: Path, scale: float, pictures: int, numbers: tuple[int, ...] = (5, 10, 20, 50)
) -> dict[tuple[str, str], list[float]]:
    """Root mean square distance of latents to the model's own limit (Heun, 499 evaluations), for those that follow its flow."""
    from sfumato.model import LatentDiffusion

    model = LatentDiffusion.load(folder)
    schedule, prompts = model.denoiser.schedule, (PROMPTS * pictures)[:pictures]
    count = len(prompts)
    with torch.no_grad():
        fields = {"caption": prompts} if "caption" in set(model.conditions.fields.values()) else {}
        denoise = model.denoise(model.conditions(fields, count), scale=scale if fields else 1.0)
    x = Stream(range(count)).normal(model.latent_shape(), 0)
    truth, found = last(sampler("heun")(denoise, x, grid.even(schedule, 250))), {}
    print(f"the latents' root mean square is {float(truth.square().mean().sqrt()):.3f}")
    for name, traits in names.SAMPLERS.items():
        if not traits.evaluations or traits.stochastic or name == "euler":
            continue
        for way in ("even", "karras", "beta"):
            runs = (last(sampler(name)(denoise, x, grid.grid(way)(schedule, steps_for(name, n)))) for n in numbers)
            found[name, way] = [float((y - truth).square().mean().sqrt()) for y in runs]
    return found


def overhead(count: int = 50) -> Iterator[tuple[str, float]]:
    """Milliseconds a step of each sampler's own work at (16, 4, 32, 32), with a denoiser that costs nothing."""
    x, g = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0)), grid.default(Linear(), count)
    for name, traits in names.SAMPLERS.items():
        if traits.evaluations:
            run = partial(sampler(name), lambda x_t, t: x_t, x, g, **options(name, list(range(16))))
            last(run())
            began = time.perf_counter()
            last(run())
            yield name, (time.perf_counter() - began) / count * 1e3


@torch.no_grad()
def evaluation(rounds: int = 3) -> float:
    """Milliseconds of one evaluation at (16, 4, 32, 32) of a U-Net of 55 M parameters, a small one for such latents."""
    from sfumato.backbones.unet import UNetConfig
    from sfumato.conditioning.base import Sizes

    network = UNetConfig(width=128, multipliers=(1, 2, 3), attention=(4,)).build(4, Sizes()).eval()
    x, t, spent = torch.randn(16, 4, 32, 32), torch.rand(16), []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        network(x, t)
        spent.append(time.perf_counter() - began)
    return sorted(spent[1:])[rounds // 2] * 1e3


def table(found: dict[tuple[str, str], list[float]], numbers: tuple[int, ...]) -> None:
    """The best grid of each sampler first, as markdown."""
    print(f"| sampler | grid | {' | '.join(map(str, numbers))} |\n|---|---|{'---|' * len(numbers)}")
    for (name, way), errors in sorted(found.items(), key=lambda item: (item[0][0], sum(map(math.log, item[1])))):
        print(f"| {name} | {way} | {' | '.join(f'{e:.4f}' for e in errors)} |")
    print()


def plot(
    results: dict[str, dict[tuple[str, str], list[float]]], numbers: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Each sampler on its best grid: distance against evaluations, a panel a problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results), 5), layout="constrained")
    for number, (title, found) in enumerate(results.items(), 1):
        axes = figure.add_subplot(1, len(results), number)
        shown = [n for n in dict.fromkeys(n for n, _ in found) if not n.startswith("euler")]  # ddim by another name
        for colour, name in enumerate(shown):
            way, errors = min(
                ((w, e) for (n, w), e in found.items() if n == name and w != "leading"),
                key=lambda i: sum(map(math.log, i[1])),
            )
            style = "--" if names.SAMPLERS[name].stochastic else "-"
            axes.plot(
                numbers[title],
                errors,
                style,
                marker=".",
                color=f"C{colour}" if colour < 9 else "black",
                label=f"{name}, {way}",
            )
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="distance", title=title)
        axes.set_xticks(numbers[title], [str(n) for n in numbers[title]])
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def schedules(path: Path) -> None:
    """One panel a schedule: alpha, sigma, and log SNR."""
    from matplotlib.figure import Figure

    shown = {
        "linear": Linear(), "linear, shift 3": Linear(3.0), "cosine": Cosine(), "sigmoid": Sigmoid(),
        "betas (Stable Diffusion)": Betas(), "betas (LDM)": Betas(0.0015, 0.0195),
        "betas, zero terminal": Betas(zero_terminal=True), "exploding (EDM)": Exploding(),
    }  # fmt: skip
    t = torch.linspace(0, 1, 400, dtype=torch.float64)
    figure = Figure(figsize=(14, 6), layout="constrained")
    for number, (title, schedule) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(2, 4, number)
        alpha, sigma = schedule(t)
        length = torch.hypot(alpha, sigma)  # for EDM, whose sigma reaches 80, the direction is what can be drawn
        axes.plot(t, alpha / length, label="alpha")
        axes.plot(t, sigma / length, label="sigma")
        axes.set(title=title, xlabel="t", ylim=(0, 1.02))
        right = axes.twinx()
        right.plot(t[1:-1], 2 * (alpha / sigma).log()[1:-1], "k:", lw=1, label="log SNR")
        right.set(ylim=(-14, 14))
        if number == 1:
            axes.legend(loc="center left", fontsize=7)
            right.legend(loc="center right", fontsize=7)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Everything, printed and drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a diffusion model's folder")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--pictures", type=int, default=8, help="how many the trained model makes")
    parser.add_argument("--only", choices=["mixture", "model"], help="one of the two problems")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    given = parser.parse_args()
    results: dict[str, dict[tuple[str, str], list[float]]] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    problems: list[tuple[str, Schedule]] = [("flow", Linear()), ("table of Stable Diffusion", Betas())]
    for title, schedule in problems if given.only != "model" else []:
        key = f"mixture, {title}"
        results[key], numbers[key] = on_mixture(schedule), EVALUATIONS
        print(f"## {key}\n")
        table(results[key], EVALUATIONS)
        print("adaptive:", ", ".join(f"{calls}: {error:.4f}" for calls, error in adaptively(schedule)), "\n")
    if given.model and given.only != "mixture":
        key = "trained model"
        numbers[key] = (5, 10, 20, 50)
        results[key] = on_model(given.model, given.guidance, given.pictures, numbers[key])
        print(f"## {key} {given.model}, guidance {given.guidance:g}\n")
        table(results[key], numbers[key])
    print("## own work, milliseconds a step at (16, 4, 32, 32)\n")
    print("| sampler | ms a step | share of the network's time |\n|---|---|---|")
    network = evaluation()
    for name, cost in overhead():
        print(f"| {name} | {cost:.2f} | {100 * cost / (network * names.SAMPLERS[name].evaluations):.2f} % |")
    print(f"\n(one evaluation: {network:.0f} ms)")
    given.out.mkdir(exist_ok=True)
    plot(results, numbers, given.out / "samplers.png")
    schedules(given.out / "schedules.png")


if __name__ == "__main__":
    main()
