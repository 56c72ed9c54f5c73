"""All numbers of a model folder, a first stage or a folder of images, with the protocol that made them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import files, image
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.bundle import silent
from sfumato.data.base import Data
from sfumato.data.picked import one_each, uncropped
from sfumato.evaluation import protocol
from sfumato.evaluation.alignment import Read, alignment
from sfumato.evaluation.captions import NEAR, SIDE, Matcher
from sfumato.evaluation.gather import gather
from sfumato.evaluation.generation import table
from sfumato.evaluation.latents import statistics
from sfumato.evaluation.memorising import listed, memorising, nearest
from sfumato.evaluation.outside import Named, Outside
from sfumato.evaluation.reconstruction import Perceptual, empty, measured, scales, summary
from sfumato.evaluation.source import Chosen, PartPictures, Rebuilt, Sampled, Source, derived
from sfumato.features.fetch import TABLE
from sfumato.features.files import scripted
from sfumato.features.lpips import NETWORKS, LpipsConfig, published
from sfumato.features.network import FeatureNetwork, colour
from sfumato.features.torchscript import ScriptConfig
from sfumato.model import LatentDiffusion
from sfumato.tasks.few import settled
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate
from sfumato.training import given
from sfumato.training.validation import LIMIT, TIMES, denoising

COLOURS = (1, 3, 4)  # channels of pictures that networks look at
LOOKED = 16  # pictures by which is told whether the data say what a model was always told
SEED = 12_345  # of the first sample of the caption match; the next count up
PERCEPTUAL = {
    "f4ce691b23bb70caace21b5a250f505654088c6b0554d8366d71a5a287ebe861": "SqueezeNet perceptual distance",
}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Looking:
    """What images are looked at with. Nothing here is needed for PSNR, SSIM and the caption match."""

    network: FeatureNetwork | None = None  # of Fréchet distances and their like
    perceptual: Perceptual | None = None
    clip: tuple[FeatureNetwork, Read] | None = None  # CLIP's two sides
    cache: Path | None = None  # of features
    workers: int = 1

    def of(self, channels: int) -> "Looking":
        """What of it looks at pictures of so many channels: no network does at other than 1, 3 or 4."""
        return self if channels in COLOURS else Looking(cache=self.cache, workers=self.workers)

    def left_out(self, channels: int) -> str | None:
        """The sentence that says what does not look at such pictures, None where all does."""
        networks = [network for network in (self.network, self.clip[0] if self.clip else None) if network is not None]
        names = [*([self.perceptual.name] if self.perceptual else []), *(n.description.name for n in networks)]
        if channels in COLOURS or not names:
            return None
        return f"left out: {', '.join(names)}; networks look at 1, 3 or 4 channels, these pictures have {channels}"


def held_out(data: Data) -> Source:
    """The held-out pictures of a data set."""
    name = data.path.resolve().name if isinstance(data, Outside) else f"{titled(data)}, held out"
    return PartPictures(data.open("held_out"), name)


def trained(data: Data, each: bool, model: LatentDiffusion | None = None) -> PartPictures:
    """The pictures that a model was trained on: all, or with `each` one of each family of twins; of a model that is told
    which square of a picture is shown those that it is asked for, the whole ones."""
    train = data.open("train")
    if model is not None and model.conditions.asked("frame"):
        train = uncropped(train)
    if each and len(train.families) < len(train):
        return PartPictures(one_each(train), f"{titled(data)}, train, one of each family")
    return PartPictures(train, f"{titled(data)}, train")


def titled(data: Data) -> str:
    """What a protocol calls a data set: its kind, or its folder's name."""
    if isinstance(data, Outside | Named):
        return titled(data.trained if isinstance(data, Outside) else data.data)
    path = getattr(data, "path", None)
    return path.resolve().name if isinstance(path, Path) else data.kind_name()


def evaluate_codec(
    codec: Codec, data: Data | Source, look: Looking | None = None, tell: Tell | None = None
) -> dict[str, Any]:
    """Reconstruction of held-out pictures (or of a source's) picture by picture, the latents, distances in features."""
    look, say = look or Looking(), tell or (lambda text: None)
    source = held_out(data) if isinstance(data, Data) else data
    empty(source)
    note, look = look.left_out(codec.image_channels), look.of(codec.image_channels)
    say(f"reconstruction of {len(source):,} pictures")
    again = Rebuilt(codec, source)
    rows = measured(again, look.perceptual)
    found: dict[str, Any] = {
        "reconstruction": summary(rows),
        "ceiling": ceiling(source, look.perceptual),
        "latents": statistics(codec, source),
        "subject": {"autoencoder": codec.fingerprint()},
        "pictures": rows,
        **({"left_out": note} if note else {}),
    }
    extra: dict[str, Any] = {}
    if look.network is not None:
        measures = table(
            look.network, source, {"reconstructions": again}, cache=look.cache, workers=look.workers, tell=tell
        )
        extra = _apart(found, measures)
    found["protocol"] = protocol.record(data=source.told(), **_compared(source, look), **extra)
    return found


def ceiling(source: Source, perceptual: Perceptual | None) -> dict[str, float]:
    """Originals against themselves: what no first stage passes. A perceptual distance above 0 here is a random one."""
    few = Chosen(source, 32)
    return summary(measured(_Same(few), perceptual))


class _Same(Rebuilt):
    """The first stage that changes nothing."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def rebuilt(self, originals: Any) -> list[Tensor]:
        return list(originals)


def _compared(source: Source, look: Looking) -> dict[str, Any]:
    """The protocol's part on comparisons of pairs."""
    several = sorted({scales(height, width) for height, width in source.sides()})
    return {
        "pairs": {"rounded": "8 bits", "ms_ssim_scales": several[0] if len(several) == 1 else several},
        "perceptual": look.perceptual.told if look.perceptual is not None else None,
    }


def _apart(found: dict[str, Any], measures: dict[str, Any]) -> dict[str, Any]:
    """Puts a table's rows, extremes and subject where they belong; returns its protocol, without what every one has."""
    found["features"], found["extremes"] = measures["rows"], measures["extremes"]
    found["subject"] |= measures["subject"]
    return {k: v for k, v in measures["protocol"].items() if k not in ("measures", "sfumato")}


def evaluate_images(
    images: Source, reference: Source, look: Looking, tell: Tell | None = None, codec: Codec | None = None
) -> dict[str, Any]:
    """Images against a reference, and where they were made through a codec what it makes of as many of the reference.

    Raises `ValueError` without a feature network.
    """
    if look.network is None:
        raise ValueError("a folder of images is measured through a feature network; give its file with --features")
    if look.clip is not None and not any(images.caption(k) for k in range(len(images))):
        raise ValueError(f"none of the {len(images)} images has a caption to be compared with; leave --clip out")
    found: dict[str, Any] = {"subject": {}}
    subjects: dict[str, Source] = {"images": images}
    if codec is not None:
        subjects["reconstructions"] = Rebuilt(codec, Chosen(reference, len(images)))
    measures = table(look.network, reference, subjects, cache=look.cache, workers=look.workers, tell=tell)
    extra = _apart(found, measures)
    if look.clip is not None:
        found["alignment"], more = aligned({"images": images, "real": reference}, look)
        extra |= more
    found["protocol"] = protocol.record(**extra)
    return found


def matches(model: LatentDiffusion, data: Data) -> bool:
    """Whether captions are matched with pictures: words are enough for the model, and the data have all pictures in one part."""
    words = "caption" in model.conditions.fields.values() and not model.conditions.wanting({"caption": ["words"]})
    return words and "all" in data.parts


def evaluate_model(
    model: LatentDiffusion,
    data: Data,
    *,
    captions: int = 512,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    dtype: torch.dtype = torch.float32,
    images: int = 1000,
    look: Looking | None = None,
    reference: Source | None = None,
    tell: Tell | None = None,
    each: bool = False,
) -> dict[str, Any]:
    """Reconstruction, held-out denoising loss, for captioned data with a part `all` the caption match of each part;
    with a feature network `images` samples against the reference (the training part by default).

    Of twins all are counted, one of each family with `each`: the balance that training shows.
    `dtype` is the sampling's precision; what of steps, guidance, sampler and grid is None is as in `generate`. Raises
    `ValueError` where the data do not have what the model was trained on.
    """
    request = requested(model, steps, guidance, sampler, grid)  # checked before hours pass
    look, say = look or Looking(), tell or (lambda text: None)
    source = held_out(data)
    empty(source)
    told(model, data)
    note, look = look.left_out(model.codec.image_channels), look.of(model.codec.image_channels)
    say("reconstruction")
    found: dict[str, Any] = {"reconstruction": summary(measured(Rebuilt(model.codec, source), look.perceptual))}
    found |= {"left_out": note} if note else {}
    say("held-out denoising loss")
    found["denoising"] = denoising(model, data.open("held_out"))
    settings = {name: getattr(request, name) for name in ("steps", "guidance", "sampler", "grid", "seed")}
    extra: dict[str, Any] = {"parts": {"held_out": source.told()["fingerprint"]}}
    found["subject"] = {"model": files.fingerprint(model.state_dict()), "autoencoder": model.codec.fingerprint()}
    sampling = copy.deepcopy(model).for_sampling(dtype)
    if matches(model, data):
        matcher = Matcher(data)

        def draw(texts: list[str]) -> Tensor:
            drawn = generate(sampling, request.model_copy(update={"prompt": texts}))
            return torch.cat([made.pictures.cpu() for made in drawn])

        found["caption_match"] = dict(_matches(matcher, data, draw, model.codec, captions, say))
        found["caption_ranks"] = {part: row.pop("ranks") for part, row in found["caption_match"].items()}
        extra["parts"] |= {name: data.open(name).fingerprint for name in ("train", "combinations", "all")}
        extra["caption_match"] = {"captions": captions, "side": SIDE, "near": NEAR}
    if look.network is not None or look.clip is not None:
        extra |= _generated(found, sampling, data, request, images, look, reference, tell, each)
    found["protocol"] = protocol.record(
        denoising={"times": TIMES, "limit": LIMIT, "shuffled": "half the part away"},
        samples=settings,
        precision=str(dtype),
        **_compared(source, look),
        **extra,
    )
    return found


def requested(
    model: LatentDiffusion, steps: int | None, guidance: float | None, sampler: str | None, grid: str | None
) -> Generate:
    """What is sampled to be measured: as `generate` would, in all that is None."""
    asked = {"steps": steps, "guidance": guidance, "sampler": sampler, "grid": grid}
    said = {name: value for name, value in asked.items() if value is not None}
    request = settled(model, Generate.model_validate({"seed": SEED, "batch": 128, **said}))
    if model.conditions.unframed - model.conditions.kept:
        return request
    if guidance not in (None, 1.0):
        raise ValueError("this model hears nothing that guidance could amplify; leave --guidance out")
    return request.model_copy(update={"guidance": 1.0})


def _generated(
    found: dict[str, Any],
    model: LatentDiffusion,
    data: Data,
    request: Generate,
    images: int,
    look: Looking,
    reference: Source | None,
    tell: Tell | None,
    each: bool,
) -> dict[str, Any]:
    """Adds what is measured on generated images to `found`; returns its protocol."""
    whole = PartPictures(data.open("train"), f"{titled(data)}, train")
    shown = trained(data, each, model)
    real = reference or shown
    subjects: dict[str, Source] = {
        "samples": Sampled(model, request, images, shown.part),
        "reconstructions": Rebuilt(model.codec, Chosen(real, images)),
    }
    extra: dict[str, Any] = {"conditions_of": shown.part.fingerprint, **derived(shown.part)}
    if look.network is not None:
        measures = table(look.network, real, subjects, cache=look.cache, workers=look.workers, tell=tell)
        extra |= _apart(found, measures)
        # pictures of another kind would lie far from the training part
        own = data.trained if isinstance(data, Outside) else data
        apart = given.held_out(own)
        if apart is not None and len(apart):
            extra["memorising"] = {"held_out": apart.fingerprint}
            seen: dict[str, Source] = {
                "samples": subjects["samples"], "held_out": PartPictures(apart, f"{titled(own)}, held out"), "train": whole,
            }  # fmt: skip
            features = {
                name: gather(look.network, source, cache=look.cache, workers=look.workers)
                for name, source in seen.items()
            }
            if "pooled" in features["train"]:
                several = [features[name]["pooled"] for name in seen]
                found["memorising"] = memorising(*several)
                found["pictures"] = [_near(row, seen) for row in listed(nearest(several[0], several[2]))]
    if look.clip is not None and any(subjects["samples"].caption(k) for k in range(images)):
        found["alignment"], more = aligned({**subjects, "real": Chosen(real, images)}, look)
        extra |= more
    return extra


def _near(row: dict[str, Any], seen: dict[str, Source]) -> dict[str, Any]:
    """A sample's nearest training picture, with both names."""
    return {**row, "name": seen["samples"].name(row["index"]), "nearest_name": seen["train"].name(row["nearest"])}


def aligned(subjects: dict[str, Source], look: Looking) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of CLIP scores of the subjects' pictures that have captions, `count` of them, each with captions half the set
    away beside, and their protocol."""
    assert look.clip is not None
    network, read = look.clip
    rows: list[dict[str, Any]] = []
    for title, source in subjects.items():
        words = [source.caption(k) for k in range(len(source))]
        known, said = torch.tensor([bool(w) for w in words]), [w for w in words if w]
        if not said:
            continue
        seen = gather(network, source, cache=look.cache, workers=look.workers)["pooled"][known]
        score = alignment(seen, said, read)
        half = len(said) // 2
        other = alignment(seen, said[half:] + said[:half], read)
        name = f"CLIP score ({network.description.name})"
        rows.append(
            {"images": title, "count": len(said), name: score.value, f"{name}, captions of others": other.value}
        )
    others = {title: source.told() for title, source in list(subjects.items())[1:]}
    return rows, {"clip": network.told(), "aligned": {"images": len(next(iter(subjects.values()))), **others}}


def _matches(
    matcher: Matcher,
    data: Data,
    draw: Callable[[list[str]], Tensor],
    codec: Codec,
    captions: int,
    say: Tell,
) -> Iterator[tuple[str, Any]]:
    # The headline is `held_out`, the combinations of words that training never showed together.
    for name, source in (("train", "train"), ("held_out", "combinations"), ("held_out_bases", "held_out")):
        if source in data.parts:
            say(f"caption match, {name.replace('_', ' ')}")
            yield name, matcher.match(data.open(source), draw, codec, captions)


def perceptual(
    path: Path,
    sha256: str | None = None,
    device: torch.device | str = "cpu",
    heads: Path | None = None,
    heads_sha256: str | None = None,
) -> Perceptual:
    """The perceptual distance of a TorchScript network (B, 3, H, W) -> (B, N): the squared distance of two outputs; of other
    weights at `path`, or with `heads`, LPIPS over the VGG16, AlexNet or SqueezeNet that they are.

    Pairs are rounded to 8 bits first, as for the other measures. It bears the files' names, or the one known of their
    hashes. Raises `ValueError` as `features.files.script` and `features.lpips.weights` do.
    """
    if heads is None and heads_sha256 is not None:
        raise ValueError("a SHA-256 of heads needs the heads; name their file with --perceptual-heads")
    if heads is None and scripted(path):
        network: nn.Module = ScriptConfig(network=path, sha256=sha256).build().to(device)
        told: dict[str, Any] = {"sha256": files.sha256(path)}
        name = PERCEPTUAL.get(told["sha256"], f"perceptual distance ({path.stem})")
    else:
        made = LpipsConfig(network=path, sha256=sha256, heads=heads, heads_sha256=heads_sha256).build()
        network, heads = made.to(device), heads or published(made.name)
        told = {"sha256": files.sha256(path), "heads": files.sha256(heads)}
        known = {"sha256": TABLE[made.name.lower()].sha256, "heads": NETWORKS[made.name].sha256}
        name = f"LPIPS ({made.name})" if told == known else f"LPIPS ({path.stem}, {heads.stem})"

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        seen = (torch.stack([colour(p) for p in image.to_uint8(x).float()]).to(device) / 127.5 - 1.0 for x in (a, b))
        squared: Tensor = network(*seen)
        return squared

    return Perceptual(name, distance, {"name": name, **told})


def told(model: LatentDiffusion, data: Data) -> None:
    """Raise `ValueError` where the data say nothing of what every example of the training was told."""
    part, fields = data.open("held_out"), model.conditions.read
    few = [part.told(k, read=fields) for k in range(0, len(part), max(len(part) // LOOKED, 1))]
    said = {f: [next((v for v in (one.get(f) for one in few) if not silent(v)), None)] for f in fields}
    if missing := model.conditions.wanting(said):
        raise ValueError(
            f"this model was told the {' and the '.join(missing)} of every picture that it learned from, and these data have none; "
            "measure it beside its run's recipe.yaml, whose data have, or name a folder that has with --data"
        )
