"""Pictures are written whole or not at all."""

import errno
import resource
from pathlib import Path

import pytest
from PIL import Image

from sfumato.tasks import metadata


def noise(seed: int) -> Image.Image:
    """A picture that no compression makes small, with settings."""
    picture = Image.effect_noise((128, 128), 90.0 + seed)
    picture.info["sfumato"] = f'{{"seed": {seed}}}'
    return picture


def test_a_picture_that_does_not_fit_leaves_nothing_or_the_old_one_and_says_what_to_do(tmp_path: Path) -> None:
    path, new = tmp_path / "old.png", tmp_path / "new.png"
    metadata.save(noise(1), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))  # Python ignores the signal, so writing fails
    try:
        for place in (path, new):
            with pytest.raises(OSError, match="what was saved is whole") as raised:
                metadata.save(noise(2), place)
            assert raised.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [path]
    assert metadata.read(path) == {"seed": 1}
