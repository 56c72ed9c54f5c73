"""What a large decode needs and what tiles change: `python benchmarks/tiling.py memory|error|parts [--help]`.

`memory` decodes noise latents of one square picture in a child process and reads the child's anonymous memory
(RssAnon in /proc) before torch's first use and at its peak. `error` decodes pictures of a trained first stage whole
and by tiles, and prints what differs, in dB and in 8-bit values. `parts` encodes pictures whole and in windows that know
nothing of one another, as if each were a picture, and prints how well they come back.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

PUBLISHED = {"kl-f8": {"factor": 8, "channels": 4, "multipliers": [1, 2, 4, 4]}}
CHILD = "--child"


def anonymous() -> float:
    """This process's anonymous resident memory in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) / 1024


def child(size: int, tile: int, width: int, share: int, precision: str, limit: float) -> None:
    """Decode one picture of `size` and print what it took, as JSON; after `limit` seconds, what it took until then."""
    import torch

    from sfumato.autoencoder.codec import Codec
    from sfumato.autoencoder.kl import KLConfig

    bare = anonymous()
    torch.manual_seed(0)
    codec = Codec(KLConfig.model_validate({"coder": {**PUBLISHED["kl-f8"], "width": width}})).eval()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    codec = codec.requires_grad_(False).to(dtype)
    weights = anonymous()
    peak, done, begin = [weights], threading.Event(), time.perf_counter()

    def tell(finished: bool) -> None:
        found = {
            "bare": bare,
            "weights": weights - bare,
            "peak": peak[0] - bare,
            "seconds": time.perf_counter() - begin,
        }
        print(json.dumps({**found, "finished": finished}), flush=True)

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())
            if time.perf_counter() - begin > limit:
                tell(False)
                os._exit(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    latents = torch.randn(1, codec.channels, size // 8, size // 8, dtype=dtype)
    picture = codec.decode(latents, tile, share)
    done.set()
    watcher.join()
    assert picture.shape == (1, 3, size, size)
    tell(True)


def memory(given: argparse.Namespace) -> None:
    """Run the child and print its line with the settings."""
    settings = [given.size, given.tile, given.width, given.share, given.precision, given.limit]
    command = [sys.executable, __file__, CHILD, *map(str, settings)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"kl-f8 width {given.width}, {given.size}x{given.size}, tile {given.tile or 'none'}, share {given.share}, "
        f"{given.precision}: weights {found['weights']:.0f} MiB, peak {found['peak']:.0f} MiB "
        f"above the bare process ({found['bare']:.0f} MiB), {found['seconds']:.0f} s"
        + ("" if found["finished"] else ", unfinished")
    )


def error(given: argparse.Namespace) -> None:
    """Print a row a tiling: how far it is from the whole decode, and from the picture."""
    import torch

    from sfumato import image
    from sfumato.autoencoder import tiling
    from sfumato.autoencoder.codec import Codec

    def psnr(made: torch.Tensor) -> float:
        return float(-10 * ((made - picture).square().mean() / 4).log10())

    codec = Codec.load(given.model).requires_grad_(False)
    paths = sorted(p for p in Path(given.pictures).rglob("*") if p.suffix in (".png", ".jpg"))[: given.count]
    rows: dict[str, list[list[float]]] = {}
    for path in paths:
        picture = image.to_tensor(image.read(path))[None]
        high, wide = picture.shape[-2:]
        latents = codec.encode(picture, pad=True)
        begin = time.perf_counter()
        whole = codec.decode(latents, 0, size=(high, wide))
        base = time.perf_counter() - begin
        for whole_places in (0, tiling.WHOLE):
            tiling.WHOLE, kept = whole_places, tiling.WHOLE
            for share in given.share if whole_places else [0]:
                begin = time.perf_counter()
                made = codec.decode(latents, given.tile, share, (high, wide))
                took = time.perf_counter() - begin
                difference = ((made - whole) * 127.5).abs()
                name = f"lowest {'whole' if whole_places else 'tiled'}, share {share}"
                values = [float(difference.mean()), float(difference.max()), psnr(whole) - psnr(made), took / base]
                rows.setdefault(name, []).append(values)
            tiling.WHOLE = kept
    print(
        f"tile {given.tile}, {len(paths)} pictures: mean |difference|, largest, PSNR lost (dB), time over the whole's"
    )
    for name, several in rows.items():
        means = torch.tensor(several).mean(0).tolist()
        print(name, " ".join(f"{value:.3f}" for value in means))


def parts(given: argparse.Namespace) -> None:
    """Print the PSNR of pictures that were encoded whole, and in windows of these sides, then decoded whole."""
    import torch

    from sfumato import image
    from sfumato.autoencoder.codec import Codec
    from sfumato.evaluation.reconstruction import psnr
    from sfumato.windows import Window, blend

    codec = Codec.load(given.model).requires_grad_(False)
    f = codec.factor
    paths = sorted(p for p in Path(given.pictures).rglob("*") if p.suffix in (".png", ".jpg"))[:: given.every]
    rows: dict[str, list[float]] = {}
    for path in paths:
        picture = image.to_tensor(image.read(path))[None]
        picture = picture[..., : picture.shape[-2] // f * f, : picture.shape[-1] // f * f]
        several = {"whole": codec.encode(picture)}

        def encoded(window: Window, _: torch.Tensor, picture: torch.Tensor = picture) -> torch.Tensor:
            return codec.encode(window.times(f).crop(picture))

        for side in given.side:
            places = side // f
            several[f"windows of {side}"] = blend(picture[..., ::f, ::f], places, max(places // 2, 1), encoded)
        for name, latents in several.items():
            rows.setdefault(name, []).append(float(psnr(picture, codec.decode(latents))))
    for name, found in rows.items():
        print(f"{name}: {torch.tensor(found).mean():.2f} dB, {len(found)} pictures")


def main() -> None:
    """Read the words and run."""
    if sys.argv[1:2] == [CHILD]:
        size, tile, width, share, precision, limit = sys.argv[2:]
        child(int(size), int(tile), int(width), int(share), precision, float(limit))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("memory")
    one.add_argument("--size", type=int, default=2048)
    one.add_argument("--tile", type=int, default=384, help="pixels; 0 decodes the whole at once")
    one.add_argument("--width", type=int, default=128)
    one.add_argument("--share", type=int, default=1)
    one.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    one.add_argument("--limit", type=float, default=1e6, help="seconds after which the peak so far is told")
    one.set_defaults(run=memory)
    two = verbs.add_parser("error")
    two.add_argument("model", type=Path)
    two.add_argument("pictures", type=Path)
    two.add_argument("--tile", type=int, default=128)
    two.add_argument("--share", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    two.add_argument("--count", type=int, default=4)
    two.set_defaults(run=error)
    three = verbs.add_parser("parts")
    three.add_argument("model", type=Path)
    three.add_argument("pictures", type=Path)
    three.add_argument("--side", type=int, nargs="+", default=[128])
    three.add_argument("--every", type=int, default=4, help="one of so many pictures")
    three.set_defaults(run=parts)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
