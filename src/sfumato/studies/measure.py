"""What a study measures of a model: distances over several sampling seeds, pictures a second, and a sheet to look at."""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from sfumato import device as devices
from sfumato import files, image, streams
from sfumato.autoencoder.codec import Codec
from sfumato.data.picked import one_each
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID
from sfumato.evaluation import protocol
from sfumato.evaluation.generation import against, apart, halves, named
from sfumato.evaluation.reconstruction import measured, summary
from sfumato.evaluation.source import Modelled, PartPictures, Rebuilt, Sampled, Source
from sfumato.families.base import Family
from sfumato.nn.rescale import blurred
from sfumato.studies.desk import Desk
from sfumato.studies.judge import Classes, Judge, classes_of, first
from sfumato.studies.verdict import Spread
from sfumato.tasks.pipeline import opened
from sfumato.tasks.requests import Generate

SHOWN = 32  # pictures of a sheet, in two rows
SHEET = 16  # pictures in a row
FORMAT = 2  # counts up where a sampler gives other pictures than before
MEASURES = protocol.FORMAT  # which counts up where a measure gives other numbers
VERSIONS = [DEFAULT, DEFAULT_GRID, FORMAT, MEASURES]  # of what samplings and their measures hang on


class Watched(Source):
    """A source whose first pictures are kept, and the seconds that its batches took."""

    def __init__(self, source: Source, kept: int, device: torch.device) -> None:
        self.source, self.wanted, self.device = source, kept, device
        self.kept: list[Tensor] = []
        self.labels: list[int | None] = []
        self.batches: list[tuple[int, float]] = []  # pictures and seconds of each
        self.sharp: list[float] = []  # of each picture

    def __len__(self) -> int:
        return len(self.source)

    def told(self) -> dict[str, Any]:
        return self.source.told()

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        begin = time.perf_counter()
        made = self.source.pictures(indices)
        devices.wait(self.device)
        self.batches.append((len(made), time.perf_counter() - begin))
        self.kept += made[: self.wanted - len(self.kept)]
        self.sharp += sharpness(made)
        return made

    @property
    def rate(self) -> float:
        """Pictures a second, of whole batches after the first, which warmed up and counts only where no other is whole."""
        most = max((count for count, _ in self.batches), default=0)
        whole = [pair for pair in self.batches if pair[0] == most]
        whole = whole[1:] or whole
        seconds = sum(taken for _, taken in whole)
        return sum(count for count, _ in whole) / seconds if seconds else float("nan")


def sharpness(pictures: Sequence[Tensor]) -> list[float]:
    """How much each picture (C, H, W) differs from its blur over 3 x 3 pixels, on the mean: blurred ones little."""
    return [float((p - blurred(p[None].float(), 3)[0]).abs().mean()) for p in pictures]


@dataclass(frozen=True)
class Row:
    """What one model came to: measures by name, and a sheet of its first pictures."""

    measures: dict[str, Spread]
    rate: Spread  # pictures a second, decoding included
    sheet: Path

    def __getitem__(self, name: str) -> Spread:
        return self.measures[name]


def distance(desk: Desk) -> str:
    """What the Fréchet distance is called with this network."""
    return named("FID", desk.network.description)


def short(desk: Desk, measure: str) -> str:
    """A measure's name with this network."""
    return named(measure, desk.network.description)


def generated(
    desk: Desk,
    name: str,
    folder: Path,
    *,
    guidance: float = 1.0,
    steps: int | None = None,
    images: int | None = None,
    seeds: Sequence[int] | None = None,
    judge: Judge | None = None,
    dtype: torch.dtype | None = None,
    **more: Any,
) -> Row:
    """A model folder's samples against what training shows, over sampling seeds; worked out once under `name`.

    `dtype` is the denoiser's while it samples, the desk's where None; other families run in float32.
    """
    dtype = desk.dtype if dtype is None else dtype
    seeds, images = tuple(desk.seeds if seeds is None else seeds), images or desk.images
    facts = {"guidance": guidance, "steps": steps or desk.steps, **more}
    key = [
        files.sha256(folder / "model.yaml"),
        desk.shown.fingerprint,
        facts,
        images,
        list(seeds),
        desk.network.told(),
        judge is not None,
        str(dtype),
        VERSIONS,
    ]

    def make() -> Any:
        model = opened(folder, desk.device)
        if isinstance(model, Family):
            return sampled(desk, name, [Modelled(model, images, s, guidance, desk.shown) for s in seeds], judge)
        few, ready = model.config.distilled, model.for_sampling(dtype)
        asks = {"sampler": few.sampler, "grid": "even", **facts} if few else facts
        requests = [Generate(seed=s, batch=64, **asks) for s in seeds]
        return sampled(desk, name, [Sampled(ready, r, images, desk.shown) for r in requests], judge)

    return read(desk, desk.once(name, key, make))


def sampled(desk: Desk, name: str, sources: Sequence[Source], judge: Judge | None) -> Any:
    """The measures of several samplings as JSON, and the sheet of the first."""
    rows, rates, sheet = list[dict[str, float]](), list[float](), ""
    for source in sources:
        watched = Watched(source, 0 if sheet else SHOWN, desk.device)
        fake = desk.seen_fresh(watched)
        found = {k: v for k, v in against(desk.real, fake, desk.network.description).items() if not k.endswith("±")}
        if judge is not None:
            found |= judge.score(fake["pooled"], asked(source))
        rows.append({**found, SHARP: statistics.fmean(watched.sharp)})
        rates.append(watched.rate)
        sheet = sheet or str(drawn(desk, name, watched.kept).relative_to(desk.folder))
    return {"rows": rows, "rates": rates, "sheet": sheet}


def asked(source: Source) -> Classes | None:
    """The class that each picture of a source was asked to be, the first of several, None where none was."""
    if isinstance(source, Modelled):
        count = len(source.family.labels)
        return [k if k < count else None for k in source.classes] if count else None
    if isinstance(source, Sampled) and "label" in source.wanted:
        return [first(source.fields(k).get("label")) for k in range(len(source))]
    return None


def spread(count: int, shown: int = SHOWN) -> list[int]:
    """Places of the pictures that a sheet shows of so many: through all of them, for class folders stand in their order."""
    return [k * count // min(shown, count) for k in range(min(shown, count))]


def read(desk: Desk, kept: Any) -> Row:
    """A row from its JSON."""
    names = [name for name in kept["rows"][0] if all(name in row for row in kept["rows"])]  # few may be asked a class
    measures = {name: Spread.of([row[name] for row in kept["rows"]]) for name in names}
    return Row(measures, Spread.of(kept["rates"]), desk.folder / kept["sheet"])


def drawn(desk: Desk, name: str, pictures: Sequence[Tensor], columns: int = SHEET) -> Path:
    """A sheet of pictures, small ones enlarged, in `sheets/NAME.png`."""
    path = desk.folder / "sheets" / f"{name}.png"
    whole = image.sheet(torch.stack(list(pictures)), columns)
    factor = max(64 // pictures[0].shape[-1], 1)
    if factor > 1:
        whole = whole.resize((whole.width * factor, whole.height * factor), Image.Resampling.NEAREST)
    files.write(path, lambda part: whole.save(part, "PNG"))
    return path


def real(desk: Desk, judge: Judge | None = None) -> Row:
    """As many pictures of one half of what training shows as are generated, against the other half, and a sheet of held-out
    ones: what fresh pictures of the same kind come to. A model that repeats the pictures it was trained on can be nearer.
    The reference is half as large as a model's, which raises the Fréchet distance a little. What the judge says is of
    held-out pictures, which it was not trained on."""

    def make() -> Any:
        one, two = halves(desk.real)
        found = apart(two, one, desk.images, len(desk.shown), desk.network.description)
        found = {k: v for k, v in found.items() if not k.endswith("±")}
        source = PartPictures(desk.held_out, "held out")
        if judge is not None:
            found |= judge.score(desk.seen(source)["pooled"], classes_of(desk.held_out))
        sheet = drawn(desk, "real", source.pictures(spread(len(source))))
        return {"rows": [found], "rates": [0.0], "sheet": str(sheet.relative_to(desk.folder))}

    parts = [desk.shown.fingerprint, desk.held_out.fingerprint]
    return read(
        desk,
        desk.once(
            "real", [*parts, desk.images, desk.network.told(), "judged" if judge is not None else "", MEASURES], make
        ),
    )


REAL = "real, from one half against the other"
FLOOR = "real, as many of what training shows"
SHARP = "sharpness"


def floor(desk: Desk) -> Row:
    """As many of the pictures that training shows as are generated, against all of them: what a perfect model would come to
    that draws them, for few pictures tell the spread of many badly. Ratios of distances are of what lies above it."""

    def make() -> Any:
        count = len(next(iter(desk.real.values())))
        order = torch.from_numpy(streams.generator(0, "as many real pictures").permutation(count)[: desk.images])
        fake = {name: rows[order] for name, rows in desk.real.items()}
        found = {k: v for k, v in against(desk.real, fake, desk.network.description).items() if not k.endswith("±")}
        pictures = PartPictures(desk.shown, "train").pictures(order.tolist())
        return {"rows": [{**found, SHARP: statistics.fmean(sharpness(pictures))}], "rates": [0.0], "sheet": ""}

    return read(desk, desk.once("floor", [desk.shown.fingerprint, desk.images, desk.network.told(), MEASURES], make))


def excess(desk: Desk, found: Spread) -> Spread:
    """How far a Fréchet distance lies above that of `floor`."""
    return dataclasses.replace(found, value=found.value - floor(desk)[distance(desk)].value)


def reals(desk: Desk, judge: Judge | None = None) -> dict[str, Row]:
    """The rows of real pictures, by what tables call them."""
    return {FLOOR: floor(desk), REAL: real(desk, judge)}


def cell(row: Row, measure: str) -> str:
    """A measure as a table says it, empty where the row has none."""
    return row[measure].told() if measure in row.measures else ""


def rebuilt(desk: Desk, name: str, folder: Path) -> dict[str, Any]:
    """A first stage on held-out pictures, one of each family: PSNR (of each as `each`), SSIM, the Fréchet distance of as many
    reconstructions as are generated."""
    held_out = one_each(desk.held_out)

    def make() -> Any:
        codec = Codec.load(folder).to(desk.device)
        held = PartPictures(held_out, "held out")
        rows = measured(Rebuilt(codec, held))
        found: dict[str, Any] = {**summary(rows), "each": [row["psnr"] for row in rows]}
        again = desk.seen_fresh(Rebuilt(codec, PartPictures(desk.shown, "train")), desk.images)
        found[distance(desk)] = against(desk.real, again, desk.network.description)[distance(desk)]
        drawn(desk, name, Rebuilt(codec, held).pictures(spread(len(held))))
        return found

    parts = [desk.shown.fingerprint, held_out.fingerprint]
    key = [files.sha256(folder / "model.yaml"), *parts, desk.images, desk.network.told(), FORMAT, MEASURES]
    kept: dict[str, Any] = desk.once(name, key, make)
    return kept


def drawing(folder: Path) -> int:
    """How many weights draw pictures: a first stage's decoder does, encoders and critics do not."""
    model = opened(folder, torch.device("cpu"))
    parts = [model, *(model.parts().values() if isinstance(model, Family) else ())]
    named = (pair for part in parts for pair in part.named_parameters())
    return sum(p.numel() for n, p in named if not {"encoder", "judge"} & {*n.split(".")})


def weights(folder: Path) -> int:
    """How many numbers a model folder holds, what it keeps of a model that was trained before it left out."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total
