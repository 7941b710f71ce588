"""Copy the models of a training run into the package, in half precision.

    celp train --name bundled --folds 0
    python tools/bundle.py runs/bundled
"""

import sys
from pathlib import Path

from celp_nb.engine.checkpoints import BUNDLED, load_checkpoint, save_checkpoint

if len(sys.argv) != 2: sys.exit(__doc__)
for method, target in BUNDLED.items():
    saved = load_checkpoint(Path(sys.argv[1]) / "fold0" / f"{method}.pt")
    saved["model"] = {name: weight.half() for name, weight in saved["model"].items()}
    save_checkpoint(target, **saved)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
