"""Few-shot segmentation with contrastive enhancement (CELP): the names of the library.

Importing this is cheap: a name's module, and PyTorch with it, is loaded when the name is first used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers take for true
if TYPE_CHECKING:
    from celp_nb.bundled.scenes import example_episode as example_episode
    from celp_nb.bundled.scenes import samples as samples
    from celp_nb.contrast import FewShotModel as FewShotModel
    from celp_nb.contrast import two_path_losses as two_path_losses
    from celp_nb.cyctr import CyCTR as CyCTR
    from celp_nb.data.benchmarks import coco20i as coco20i
    from celp_nb.data.benchmarks import open_folder as open_folder
    from celp_nb.data.benchmarks import pascal5i as pascal5i
    from celp_nb.data.coco import coco_layout as coco_layout
    from celp_nb.data.voc import voc_layout as voc_layout
    from celp_nb.engine.backbones import load_backbone as load_backbone
    from celp_nb.engine.backbones import register_backbone as register_backbone
    from celp_nb.engine.feature_bank import evaluate as evaluate
    from celp_nb.engine.feature_bank import feature_bank as feature_bank
    from celp_nb.engine.methods import register_decoder as register_decoder
    from celp_nb.engine.pretrained import model_card as model_card
    from celp_nb.engine.segmenter import Segmenter as Segmenter
    from celp_nb.latent import sample_latent as sample_latent
    from celp_nb.pfenet import PFENet as PFENet
    from celp_nb.repro.config import RunConfig as RunConfig
    from celp_nb.repro.config import make_config as make_config
    from celp_nb.repro.runs import run as run

#: public name → its module; a line here and one above add a name
_HOMES = {
    "CyCTR": "cyctr",
    "FewShotModel": "contrast",
    "PFENet": "pfenet",
    "RunConfig": "repro.config",
    "Segmenter": "engine.segmenter",
    "coco20i": "data.benchmarks",
    "coco_layout": "data.coco",
    "evaluate": "engine.feature_bank",
    "example_episode": "bundled.scenes",
    "feature_bank": "engine.feature_bank",
    "load_backbone": "engine.backbones",
    "make_config": "repro.config",
    "model_card": "engine.pretrained",
    "open_folder": "data.benchmarks",
    "pascal5i": "data.benchmarks",
    "register_backbone": "engine.backbones",
    "register_decoder": "engine.methods",
    "run": "repro.runs",
    "sample_latent": "latent",
    "samples": "bundled.scenes",
    "two_path_losses": "contrast",
    "voc_layout": "data.voc",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # a checker tells an unknown name itself

    def __getattr__(name: str) -> object:
        "A public name, from its module. Raises AttributeError naming the nearest for another."
        from importlib import import_module

        if name in _HOMES:
            value = getattr(import_module(f"celp_nb.{_HOMES[name]}"), name)
            globals()[name] = value  # so that it is asked for once
            return value
        from difflib import get_close_matches

        lower = {known.lower(): known for known in _HOMES}
        near = get_close_matches(name.lower(), lower, 1)
        hint = f"; did you mean {lower[near[0]]!r}?" if near and not name.startswith("_") else ""
        raise AttributeError(f"module 'celp_nb' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
