"""The fuzz targets as modules: tests are no package, so their directory goes on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
