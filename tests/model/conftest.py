"""The tests import the model and the search by name, as two plain modules.

--import-mode=importlib leaves sys.path alone, and without a package there is nothing that a
relative import could start from. So their directory goes on the path here.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
