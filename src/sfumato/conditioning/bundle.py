"""All conditioners of a model as one: it reads examples' fields, drops conditions in training, joins the doors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, Conditions, Draws, Setting, Sizes, choose, crop
from sfumato.windows import Window

HEARD = ("caption", "label")  # roles of which one request is said to several conditioners


def silent(value: Any) -> bool:
    """Whether a value says nothing: None, an empty text, an empty list."""
    return value is None or (
        isinstance(value, str | list | tuple) and not (value.strip() if isinstance(value, str) else value)
    )


class Bundle(nn.Module):
    """Named conditioners; token sources of several widths are projected to the widest.

    `forward(fields)` takes the values of B examples by field; a field that is absent, or a value that is None, an
    empty text or an empty list, counts as «nothing was said» and gets the null. `size` is the latent's grid (h, w) that
    images fill where a call does not tell another.
    """

    def __init__(self, conditioners: Mapping[str, Conditioner], size: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.size = size
        self.conditioners = nn.ModuleDict(dict(conditioners))
        sizes = [c.sizes for c in conditioners.values()]
        width = max((s.tokens for s in sizes), default=0)
        self.sizes = Sizes(sum(s.vector for s in sizes), width, sum(s.image for s in sizes))
        self.project = nn.ModuleDict(
            {n: nn.Linear(c.sizes.tokens, width) for n, c in conditioners.items() if c.sizes.tokens not in (0, width)}
        )

    @property
    def fields(self) -> dict[str, str]:
        """The field that each conditioner reads, by its name."""
        return {name: self._get(name).field for name in self.conditioners}

    @property
    def read(self) -> frozenset[str]:
        """All fields that are read, in training alone or always."""
        return frozenset({*self.fields.values(), *self.besides})

    @property
    def tellable(self) -> frozenset[str]:
        """Fields that a conditioner can tell from others where they are left unsaid."""
        return frozenset(self._get(name).field for name in self.conditioners if self._get(name).beside)

    @property
    def unframed(self) -> frozenset[str]:
        """Fields that are read but for those of which square is shown: unsaid, whole pictures are asked for."""
        return frozenset(self.fields.values()) - {*self.asked("frame")}

    @property
    def besides(self) -> list[str]:
        """The second fields of conditioners that read two."""
        return [beside for name in self.conditioners if (beside := self._get(name).beside)]

    @property
    def kept(self) -> frozenset[str]:
        """Fields that guidance leaves on both sides: what is given, and what was told in every example of the training."""
        several = [self._get(name) for name in self.conditioners]
        return frozenset(c.field for c in several if c.held or c.always)

    def wanting(self, said: Mapping[str, Sequence[Any]]) -> list[str]:
        """Fields of which nothing is said, though in training something always was."""
        several = [self._get(n) for n in self.conditioners]
        needed = [c.field for c in several if c.always and not (c.whole or c.beside)]
        return [field for field in needed if any(silent(v) for v in said.get(field, (None,)))]

    def asked(self, role: str) -> list[str]:
        """The fields that a request for this `role` (caption, label, boxes, ...) may fill: the one of that name, else those of
        all conditioners that play it; of words and classes, which several can hear, always all."""
        found = list(dict.fromkeys(self._get(n).field for n in self.conditioners if self._get(n).role == role))
        return [role] if role in found and role not in HEARD else found

    def reader(self, field: str) -> Any:
        """The conditioner that reads a field. Raises `ValueError` where none does."""
        for name in self.conditioners:
            if self._get(name).field == field:
                return self._get(name)
        raise ValueError(f"the model takes no {field}; it takes {', '.join(sorted(self.fields.values())) or 'nothing'}")

    def _get(self, name: str) -> Conditioner:
        found = self.conditioners[name]
        assert isinstance(found, Conditioner)
        return found

    def dropped(self, draws: Tensor, unsaid: float = 0.0) -> Tensor:
        """Which conditions to drop, (B, number of conditioners), from uniform draws (B, number + 1).

        Each by its own rate, and all that are ever dropped and that guidance amplifies together in a share `unsaid` of the
        examples, told by the last column.
        """
        several = [self._get(n) for n in self.conditioners]
        rates = torch.tensor([c.dropout for c in several])
        joint = torch.tensor([bool(c.dropout) and not c.held for c in several], dtype=torch.bool)
        return (draws[:, :-1] < rates) | ((draws[:, -1:] < unsaid) & joint)

    @property
    def amplified(self) -> int:
        """How many conditions there are that are sometimes dropped and that guidance amplifies."""
        return sum(bool(self._get(n).dropout) and not self._get(n).held for n in self.conditioners)

    def mirrored(self, fields: Mapping[str, Sequence[Any]], flips: Sequence[bool]) -> dict[str, list[Any]]:
        """The fields of examples whose pictures are shown mirrored where `flips` says so."""
        turn = {self._get(n).field: self._get(n).mirrored for n in self.conditioners}
        return {
            name: [
                turn[name](v) if f and name in turn and not silent(v) else v for v, f in zip(values, flips, strict=True)
            ]
            for name, values in fields.items()
        }

    def setting(
        self,
        count: int,
        size: tuple[int, int] | None = None,
        draws: Draws | None = None,
        augment: bool = False,
        window: Window | None = None,
    ) -> Setting:
        """A setting for `count` examples; without `draws` row k has those of seed 0 and image k."""
        drawn = Draws.training(0, range(count)) if draws is None else draws
        if len(drawn.keys) != count:
            raise ValueError(f"draws for {len(drawn.keys)} examples, and there are {count}; give a key each")
        return Setting(self.size if size is None else (int(size[0]), int(size[1])), drawn, augment, window)

    def forward(
        self,
        fields: Mapping[str, Sequence[Any]],
        count: int,
        drop: Tensor | None = None,
        *,
        size: tuple[int, int] | None = None,
        draws: Draws | None = None,
        augment: bool = False,
        window: Window | None = None,
    ) -> Conditions:
        """Conditions of `count` examples; `drop` (count, number of conditioners) replaces conditions by their null.

        `size` is the latent's grid (h, w), `draws` the randomness of noise augmentation, which `augment` turns on as
        in training; with `window` they are the conditions of that part of the canvas, for `tiled`: images are cut,
        boxes are told in the window's own coordinates.
        """
        self._know(fields)
        setting = self.setting(count, size, draws, augment, window)
        whole = self._joined([self._one(n, fields, count, drop, k, setting) for k, n in enumerate(self.conditioners)])
        return whole if window is None else crop(whole, window)

    def over(
        self,
        fields: Mapping[str, Sequence[Any]],
        count: int,
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
    ) -> Callable[[Window | None], Conditions]:
        """The conditions of any window of one canvas, as `forward` gives them, None for all of it.

        What a window only cuts, such as a picture that goes through the first stage, is read once, for all windows.
        """
        self._know(fields)

        def read(name: str, window: Window | None) -> Conditions:
            setting = self.setting(count, size, draws, window=window)
            return self._one(name, fields, count, None, 0, setting)

        once = {name: read(name, None) for name in self.conditioners if not self._get(name).local}

        def at(window: Window | None) -> Conditions:
            whole = self._joined([once[n] if n in once else read(n, window) for n in self.conditioners])
            return whole if window is None else crop(whole, window)

        return at

    def _know(self, fields: Mapping[str, Sequence[Any]]) -> None:
        known = self.read
        strange = sorted(set(fields) - known)
        if strange:
            raise ValueError(
                f"the model takes no {', '.join(strange)}; it takes {', '.join(sorted(known)) or 'no condition'}"
            )

    def _one(
        self,
        name: str,
        fields: Mapping[str, Sequence[Any]],
        count: int,
        drop: Tensor | None,
        column: int,
        setting: Setting,
    ) -> Conditions:
        conditioner = self._get(name)
        values = list(fields.get(conditioner.field, [None] * count))
        if len(values) != count:
            raise ValueError(f"{len(values)} values of {conditioner.field!r} for {count} images; give one each")
        gone = [silent(v) for v in values]
        if drop is not None:
            gone = [g or bool(d) for g, d in zip(gone, drop[:, column].tolist(), strict=True)]
        said = [k for k, g in enumerate(gone) if not g]
        if not said:
            return conditioner.null(count, setting)
        own = replace(setting, draws=setting.draws.named(name))
        given: Conditions = conditioner([values[k] for k in said], own.pick(said))
        if len(said) == count:
            return given
        device = next(p.device for p in given.parts() if p is not None)
        place = torch.zeros(count, dtype=torch.long)
        place[said] = torch.arange(len(said))
        spread = place.to(device)
        rows = Conditions(*(None if p is None else p[spread] for p in given.parts()))
        null = conditioner.null(count, setting)
        return choose(torch.tensor([not g for g in gone], device=device), rows, null)

    def unknown(self, fields: Mapping[str, Sequence[Any]], count: int, drop: Tensor) -> list[Tensor | None]:
        """Where each of `count` pictures is to be made, (1, H, W) in [0, 1]; None where nothing of it is given."""
        found: list[Tensor | None] = [None] * count
        for column, name in enumerate(self.conditioners):
            one = self._get(name)
            for k, value in enumerate(fields.get(one.field, [None] * count)):
                hole, before = None if silent(value) or drop[k, column] else one.unknown(value), found[k]
                if hole is not None:
                    found[k] = hole if before is None else torch.minimum(before, hole)
        return found

    def lesson(self, fields: Mapping[str, Sequence[Any]], count: int, draws: Draws) -> Tensor | None:
        """What conditioners learn from two fields together, a mean over the examples; None where none reads two. Where no
        example says both it is 0: every part of a batch tells the same measures."""
        if not self.besides:
            return None
        total = torch.zeros((), device=next(self.parameters()).device)
        for name, one, values, beside in self._pairs(fields, count):
            both = [k for k in range(count) if not silent(values[k]) and not silent(beside[k])]
            if not both:
                continue
            drawn = draws.named(name).pick(both)
            found = one.lesson([values[k] for k in both], [beside[k] for k in both], drawn).sum() / count
            total = total + found
        return total

    @torch.no_grad()
    def imagined(
        self, fields: Mapping[str, Sequence[Any]], count: int, draws: Draws | None = None
    ) -> dict[str, list[Any]]:
        """The fields of `count` examples, with what was left unsaid where a conditioner can tell it from the rest."""
        drawn = self.setting(count, draws=draws).draws
        found = {name: list(values) for name, values in fields.items()}
        for name, one, values, beside in self._pairs(fields, count):
            open_ = [k for k in range(count) if silent(values[k]) and not silent(beside[k])]
            if open_:
                made = iter(one.imagined([beside[k] for k in open_], drawn.named(name).pick(open_)))
                found[one.field] = [next(made) if k in open_ else values[k] for k in range(count)]
        return found

    def _pairs(
        self, fields: Mapping[str, Sequence[Any]], count: int
    ) -> Iterator[tuple[str, Conditioner, list[Any], list[Any]]]:
        """Conditioners that read two fields, with both."""
        for name in self.conditioners:
            one = self._get(name)
            if one.beside:
                values, beside = (list(fields.get(field, [None] * count)) for field in (one.field, one.beside))
                yield name, one, values, beside

    def null(self, count: int, size: tuple[int, int] | None = None) -> Conditions:
        """`count` rows in which nothing was said to any conditioner, for latents of (h, w) `size`."""
        setting = self.setting(count, size)
        return self._joined([self._get(n).null(count, setting) for n in self.conditioners])

    def _joined(self, several: Sequence[Conditions]) -> Conditions:
        names = list(self.conditioners)
        vectors = [c.vector for c in several if c.vector is not None]
        images = [c.image for c in several if c.image is not None]
        tokens, masks = [], []
        for name, c in zip(names, several, strict=True):
            if c.tokens is not None and c.mask is not None:
                tokens.append(self.project[name](c.tokens) if name in self.project else c.tokens)
                masks.append(c.mask)
        return Conditions(
            torch.cat(vectors, 1) if vectors else None,
            torch.cat(tokens, 1) if tokens else None,
            torch.cat(masks, 1) if masks else None,
            torch.cat(images, 1) if images else None,
        )
