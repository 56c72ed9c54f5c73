"""What lies beside the repository and not in it: tensors of the published implementation, real networks and pictures.

Tests that want them are skipped where they are not. `SFUMATO_GOLDEN` and `SFUMATO_DATA` say where else they are.
"""

import os
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = Path(os.environ.get("SFUMATO_GOLDEN", SHARED / "golden"))
DATA = Path(os.environ.get("SFUMATO_DATA", SHARED / "data"))
