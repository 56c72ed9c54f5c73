"""Names of samplers and grids, and what each sampler costs, for help and errors that must not wait for torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """What one may rely on. `order` is that of the path between two noisy rows that stay where they are, as on the grids
    `ORDERED`, its start-up counted; 0 where the sampler converges in distribution only. `evaluations` a step hold for
    every step but the last, which takes one; `start` further ones belong to the first step. An adaptive sampler has 0 a
    step; its order is that of its error in the number of evaluations."""

    order: int
    evaluations: int = 1
    stochastic: bool = False
    start: int = 0

    def count(self, steps: int) -> int:
        """Network evaluations of a run of `steps` steps; 0 where the sampler finds its own steps."""
        if not self.evaluations:
            return 0
        return self.evaluations * (steps - 1) + 1 + self.start * (steps > 1)


SAMPLERS: dict[str, Traits] = {
    "ddim": Traits(1),
    "ddpm": Traits(0, stochastic=True),
    "euler": Traits(1),
    "euler_ancestral": Traits(0, stochastic=True),
    "heun": Traits(2, evaluations=2),
    "dpmpp_2m": Traits(2),
    "dpmpp_sde": Traits(0, evaluations=2, stochastic=True),
    "dpmpp_2m_sde": Traits(0, stochastic=True),
    "plms": Traits(3, start=1),
    "deis": Traits(2),
    "unipc": Traits(3),
    "lcm": Traits(0, stochastic=True),
    "adaptive": Traits(3, evaluations=0),
}

GRIDS = (
    "even",
    "trailing",
    "leading",
    "sgm_uniform",
    "karras",
    "exponential",
    "polyexponential",
    "beta",
    "shifted",
)

ORDERED = ("karras", "exponential", "polyexponential")  # whose noisy ends stay with more steps: orders hold on them
DEFAULT, DEFAULT_GRID = "deis", "karras"  # docs/diffusion.md says why
