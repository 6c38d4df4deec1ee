"""The zoo as a package: tests are none, so its directory goes on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
