"""The pictures of the demo's page that a finished model makes: prompts, guidance, an interpolation."""

from pathlib import Path

import torch
from PIL import Image

from sfumato import image
from sfumato.data.base import Data
from sfumato.demo.report import Page
from sfumato.evaluation.captions import chosen
from sfumato.evaluation.reconstruction import rebuilt
from sfumato.page import enlarge
from sfumato.streams import Stream
from sfumato.tasks.generate import between
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import walk

SEEN = [
    "red heart",
    "grinning face",
    "flag: japan",
    "woman firefighter: dark skin tone",
    "cat face",
    "red apple",
    "sun",
    "woman farmer: light skin tone",
]
FREE = [
    "blue cat face",
    "purple apple",
    "green heart with red circle",
    "orange dog face",
    "pink car",
    "smiling red apple",
    "yellow triangle",
    "robot firefighter",
]
SCALES = (1.0, 2.0, 4.0, 7.0)


def pictures(pipeline: Pipeline, prompts: list[str], guidance: float = 3.0, seed: int = 7) -> list[Image.Image]:
    """One picture a prompt, twice as large as made."""
    made = pipeline.generate(Generate(prompt=prompts, seed=seed, guidance=guidance, count=len(prompts)))
    return [enlarge(p, 2) for p in made]


def prompts(page: Page, pipeline: Pipeline, data: Data) -> None:
    """Grids of prompts: seen in training, combinations held out, free text."""
    part = data.open("combinations")
    apart = [part.fields(k)["caption"][0] for k in chosen(part, 8)]
    for title, text, words in (
        ("Words that training saw", "Each is a caption of the training set; the noise is new.", SEEN),
        (
            "Combinations that it never saw together",
            "Role, tone and gender were each seen, but never these three at once: words that work, not memory.",
            apart,
        ),
        ("Free text", "Nobody drew these. Small models trained for minutes get some of them.", FREE),
    ):
        page.heading(title, text)
        page.tiles(pictures(pipeline, words), words)
        page.command(f'sfumato generate {page.folder}/model --prompt "{words[0]}" --seed 7')


def guidance(page: Page, pipeline: Pipeline) -> None:
    """The same prompts and noise at several guidance scales."""
    page.heading("Guidance", "The same noise under growing guidance: from what the words allow to what they insist on.")
    for prompt in ("red heart", "woman firefighter: dark skin tone"):
        made = [pictures(pipeline, [prompt], scale)[0] for scale in SCALES]
        page.tiles(made, [f"{prompt}, guidance {scale:g}" for scale in SCALES])
    page.command(f'sfumato generate {page.folder}/model --prompt "red heart" --seed 7 --guidance 4')


@torch.no_grad()
def interpolation(page: Page, pipeline: Pipeline, steps: int = 10) -> None:
    """One prompt, its noise turned from one seed's to another's."""
    model = pipeline.model
    noise = Stream([7, 8]).normal(model.latent_shape(), 0)
    x = torch.stack([between(noise[0], noise[1], k / (steps - 1)) for k in range(steps)]).to(model.device)
    words = ["grinning face"] * steps
    made = model.pictures(walk(model, x, Generate(), {"caption": words}))
    page.heading("Between two noises", "One prompt; the noise turns from seed 7's to seed 8's along a great circle.")
    page.figure(enlarge(image.sheet(made, steps), 2), "grinning face, spherical interpolation of the latent noise")


@torch.no_grad()
def reconstructions(page: Page, pipeline: Pipeline, data: Data, recipe: Path) -> None:
    """Held-out originals above what the first stage makes of them."""
    part = data.open("held_out")
    step = max(len(part) // 14, 1)
    originals = torch.stack([part.image(k) for k in range(0, 14 * step, step) if k < len(part)]).float() / 127.5 - 1.0
    again = rebuilt(pipeline.model.codec, originals)
    page.heading(
        "First stage",
        "Held-out emoji above, and what is left of them after 64 x 64 x 3 numbers became 8 x 8 x 16 and came back.",
    )
    page.figure(enlarge(image.sheet(torch.cat([originals, again]), len(originals)), 2), "originals, reconstructions")
    page.command(f"sfumato train {recipe} --run {page.folder}/first-stage")
