"""Running launch scripts up to the command that they would run."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def launch(script, *arguments, **environment):
    """A dry run of `scripts/<script>` with nothing but these variables set."""
    base = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments], env=base | environment, capture_output=True, text=True, check=False
    )
