"""Put a trained model into the package, in half precision.

    celp train --name bundled --fold 0
    python tools/bundle.py "runs/bundled/fold0/PFENet+CE contrast=1.pt" samples-pfenet-ce

The name is one of `celp_nb.engine.pretrained.PRETRAINED`: for a new model add its line first. A
third argument is a file of markdown for its card: what it scores on novel classes, what it cannot
do. The model runs on the backbone's own weights, so train it on those.
"""

import sys
from pathlib import Path

from celp_nb.engine.pretrained import PRETRAINED, model_card, ship_model

if len(sys.argv) not in (3, 4) or sys.argv[2] not in PRETRAINED:
    sys.exit(f"{__doc__}\nNames: {', '.join(PRETRAINED)}")
source, name, *card = sys.argv[1:]
about = Path(card[0]).read_text(encoding="utf-8").strip() if card else ""
if "TO FILL IN" in about: sys.exit(f"{card[0]} has gaps (TO FILL IN); fill them in first.")
target = PRETRAINED[name]
ship_model(source, target, about)
print(f"{target}: {target.stat().st_size / 1e6:.2f} MB\n\n{model_card(name)}")
