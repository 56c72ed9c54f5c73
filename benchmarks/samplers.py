"""Which sampler, on which grid: error against network evaluations, on an exact problem and on a trained model.

    python benchmarks/samplers.py                            everything but the trained model
    python benchmarks/samplers.py --only mixture             the mixture of Gaussians, all samplers and grids
    python benchmarks/samplers.py --only model --model DIR   a trained model, against its own limit
    python benchmarks/samplers.py --only work                what the samplers themselves cost

Prints tables in markdown. The mixture draws docs/samplers.png and docs/schedules.png, a model docs/samplers_model.png. The
mixture takes two minutes on a CPU; a model some 7,000 evaluations of a batch.
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
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
SETTLING = ("dpmpp_sde", "dpmpp_2m_sde")  # stochastic, but on one path: with more steps they settle on one picture
GRIDS = tuple(way for way in names.GRIDS if way not in ("leading", "polyexponential"))  # starts too low; is exponential
Curves = dict[tuple[str, str], list[tuple[int, float]]]  # (sampler, grid) -> evaluations and distances
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


def noise(schedule: Schedule) -> Tensor:
    """Points at the noisy end (1, 2, h, w)."""
    return Stream([1]).normal((2, *PLACES), 0).double() * float(torch.hypot(*schedule(torch.ones(()).double())))


def flat(y: Tensor) -> Tensor:
    return y.movedim(1, -1).reshape(-1, 2)


def curve(name: str, way: str, schedule: Schedule, run: Callable[..., float]) -> list[tuple[int, float]]:
    """`run(grid)` at the largest number of steps within each number of evaluations."""
    steps = [steps_for(name, n) for n in EVALUATIONS]
    return [(names.SAMPLERS[name].count(n), run(grid.grid(way)(schedule, n))) for n in steps]


def adaptively(
    denoise: Denoise, x: Tensor, g: grid.Grid, distance: Callable[[Tensor], float]
) -> list[tuple[int, float]]:
    """(evaluations, distance) of the adaptive sampler at falling tolerances."""
    found = []
    for tolerance in TOLERANCES:
        calls = 0

        def counted(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return denoise(x_t, t)

        y = last(sampler("adaptive")(counted, x, g, tolerance=tolerance))
        found.append((calls, distance(y)))
    return found


def on_mixture(schedule: Schedule) -> Curves:
    """Distances to exact samples for every sampler on every grid, at each number of evaluations."""
    x, denoise = noise(schedule), mixture(schedule)
    truth, found = flat(exact(schedule, x)), Curves()
    for name, traits in names.SAMPLERS.items():
        if not traits.evaluations:
            found[name, ""] = adaptively(denoise, x, grid.default(schedule, 50), lambda y: sliced(flat(y), truth))
            continue
        for way in names.GRIDS:
            found[name, way] = curve(
                name,
                way,
                schedule,
                lambda g, name=name: sliced(flat(last(sampler(name)(denoise, x, g, **options(name, [2])))), truth),
            )
    return found


def on_model(folder: Path, scale: float, pictures: int) -> Curves:
    """Root mean square distance of latents to the model's own limit, for every sampler that has one.

    That of the flow is Heun's method at 499 evaluations; each of `SETTLING` has its own, at as many, on its own path.
    """
    from sfumato.model import LatentDiffusion

    model = LatentDiffusion.load(folder)
    schedule, prompts = model.denoiser.schedule, (PROMPTS * pictures)[:pictures]
    count = len(prompts)
    with torch.no_grad():
        fields = {"caption": prompts} if "caption" in set(model.conditions.fields.values()) else {}
        denoise = model.denoise(model.conditions(fields, count), scale=scale if fields else 1.0)
    seeds = list(range(count))
    x = Stream(seeds).normal(model.latent_shape(), 0) * float(torch.hypot(*schedule(torch.ones(()).double())))
    truth, found = last(sampler("heun")(denoise, x, grid.even(schedule, 250))), Curves()
    print(f"{count} pictures; the latents' root mean square is {float(truth.square().mean().sqrt()):.3f}")
    for name, traits in names.SAMPLERS.items():
        if name == "euler" or (
            traits.stochastic and name not in SETTLING
        ):  # ddim by another name; those without a limit
            continue
        limit = truth
        if traits.stochastic:
            fine = grid.exponential(schedule, steps_for(name, 499))
            limit = last(sampler(name)(denoise, x, fine, **options(name, seeds)))
        away: Callable[[Tensor], float] = lambda y, to=limit: float((y - to).square().mean().sqrt())  # noqa: E731
        if not traits.evaluations:
            found[name, ""] = adaptively(denoise, x, grid.default(schedule, 50), away)
            continue
        for way in GRIDS:
            found[name, way] = curve(
                name,
                way,
                schedule,
                lambda g, name=name, away=away: away(last(sampler(name)(denoise, x, g, **options(name, seeds)))),
            )
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


def table(found: Curves) -> None:
    """The best grid of each sampler first, as markdown."""
    print(f"| sampler | grid | {' | '.join(map(str, EVALUATIONS))} |\n|---|---|{'---|' * len(EVALUATIONS)}")
    for (name, way), points in sorted(found.items(), key=lambda item: (item[0][0], height(item[1]))):
        cells = [f"{e:.4f}" if way else f"{n}: {e:.4f}" for n, e in points]
        print(f"| {name} | {way} | {' | '.join(cells)} |")
    print()


def height(points: list[tuple[int, float]]) -> float:
    """What the best grid of a sampler is best in: the mean logarithm of the distance."""
    return sum(math.log(e) for _, e in points) / len(points)


def plot(results: dict[str, Curves], path: Path) -> None:
    """Each sampler on its best grid: distance against evaluations, a panel a problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(results), 6), layout="constrained")
    for number, (title, found) in enumerate(results.items(), 1):
        axes = figure.add_subplot(1, len(results), number)
        shown = [n for n in dict.fromkeys(n for n, _ in found) if not n.startswith("euler")]  # ddim by another name
        for colour, name in enumerate(shown):
            way, points = min(
                ((w, e) for (n, w), e in found.items() if n == name and w != "leading"), key=lambda i: height(i[1])
            )
            axes.plot(
                *zip(*points, strict=True),
                "--" if names.SAMPLERS[name].stochastic else "-",
                marker="x" if name == "adaptive" else ".",
                color=f"C{colour}" if colour < 10 else "black",
                label=f"{name}, {way}" if way else f"{name}, tolerances {TOLERANCES[0]:g} to {TOLERANCES[-1]:g}",
            )
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="distance", title=title)
        axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axes.minorticks_off()
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
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
    parser.add_argument("--pictures", type=int, default=16, help="how many the trained model makes")
    parser.add_argument("--only", choices=["mixture", "model", "work"], help="one of the parts")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    given = parser.parse_args()
    if given.only == "model" and given.model is None:
        parser.error("--only model needs --model")
    given.out.mkdir(exist_ok=True)
    if given.only in (None, "mixture"):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so few points are twenty times slower on several
        problems: list[tuple[str, Schedule]] = [("flow", Linear()), ("table of Stable Diffusion", Betas())]
        results = {f"mixture, {title}": on_mixture(schedule) for title, schedule in problems}
        for title, found in results.items():
            print(f"## {title}\n")
            table(found)
        plot(results, given.out / "samplers.png")
        schedules(given.out / "schedules.png")
        torch.set_num_threads(threads)
    if given.model and given.only in (None, "model"):
        found = on_model(given.model, given.guidance, given.pictures)
        print(f"## trained model {given.model}, guidance {given.guidance:g}\n")
        table(found)
        plot({f"trained model, {given.pictures} pictures": found}, given.out / "samplers_model.png")
    if given.only in (None, "work"):
        print("## own work, milliseconds a step at (16, 4, 32, 32)\n")
        print("| sampler | ms a step | share of the network's time |\n|---|---|---|")
        network = evaluation()
        for name, cost in overhead():
            print(f"| {name} | {cost:.2f} | {100 * cost / (network * names.SAMPLERS[name].evaluations):.2f} % |")
        print(f"\n(one evaluation: {network:.0f} ms)")


if __name__ == "__main__":
    main()
