"""What was found out about a large folder of pictures, kept in a file for the next program.

Losing it costs the time of finding it out again, so that a file that is damaged, of an older version or cannot be written
is no fault.
"""

import json
import logging
from pathlib import Path
from typing import Any

from sfumato import files

log = logging.getLogger(__name__)
VERSION = 2  # a change of `survey.Seen`, of `twins` or of which pictures are left out raises it


def read(path: Path) -> Any:
    """The value, or None where there is none to be had."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("value") if isinstance(kept, dict) and kept.get("version") == VERSION else None


def write(path: Path, value: Any) -> None:
    """Keep a value of JSON's types."""
    try:
        files.write(path, json.dumps({"version": VERSION, "value": value}))
    except OSError as error:
        log.info("what was found out about the pictures is not kept: %s", error)
