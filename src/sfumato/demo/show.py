"""The pictures of the demo's page that a finished model makes: prompts, guidance, an interpolation."""

import torch
from PIL import Image

from sfumato import image
from sfumato.data.base import Data
from sfumato.demo.report import Page
from sfumato.evaluation.captions import chosen
from sfumato.evaluation.reconstruction import rebuilt
from sfumato.page import enlarge
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate

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
        page.generated(words)


def guidance(page: Page, pipeline: Pipeline) -> None:
    """The same prompts and noise at several guidance scales."""
    page.heading("Guidance", "The same noise under growing guidance: from what the words allow to what they insist on.")
    for prompt in ("red heart", "woman firefighter: dark skin tone"):
        made = [pictures(pipeline, [prompt], scale)[0] for scale in SCALES]
        page.tiles(made, [f"{prompt}, guidance {scale:g}" for scale in SCALES])
    page.generated(["red heart"], "--guidance", SCALES[-1])


def interpolation(page: Page, pipeline: Pipeline, steps: int = 10) -> None:
    """One prompt, its noise turned from one seed's to another's."""
    made = pipeline.generate(Generate(prompt=["grinning face"], seed=7, until=8, count=steps))
    strip = image.sheet(torch.stack([image.to_tensor(picture) for picture in made]), steps)
    page.heading("Between two noises", "One prompt; the noise turns from seed 7's to seed 8's along a great circle.")
    page.figure(enlarge(strip, 2), "grinning face, spherical interpolation of the latent noise")
    page.generated(["grinning face"], "--until", 8, "--count", steps)


@torch.no_grad()
def reconstructions(page: Page, pipeline: Pipeline, data: Data) -> None:
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
    page.trained("first-stage")
