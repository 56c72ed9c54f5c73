"""The chapter on conditions: its recipes can be read, and it names every kind."""

import re
from pathlib import Path

import yaml

from sfumato.conditioning.base import ConditionerConfig
from sfumato.config import known

CHAPTER = (Path(__file__).parents[2] / "docs" / "conditions.md").read_text(encoding="utf-8")


def test_its_recipes_can_be_read_and_every_kind_is_shown() -> None:
    shown = set()
    for block in re.findall(r"```yaml\n(.*?)```", CHAPTER, re.DOTALL):
        for fields in yaml.safe_load(block)["conditioners"].values():
            shown.add(ConditionerConfig.model_validate(fields).kind_name())
    assert shown == set(known(ConditionerConfig))
    assert all(f"| `{kind}` |" in CHAPTER for kind in shown)
