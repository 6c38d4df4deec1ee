"""The zoo and its programs as modules: tests are no package, so their directory is on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
