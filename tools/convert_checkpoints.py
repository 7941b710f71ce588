"""Give checkpoints written before the decoders took the literature's names the present names.

    python tools/convert_checkpoints.py runs/samples/fold0/PFENet+CE.pt runs/samples/fold0/last.pt

Each file is replaced as a whole or not at all. Only names of parameters change: tensors stay the
same to the bit, and so does everything else in the file.
"""

import re
import sys

from celp_nb.engine.checkpoints import FORMER_NAME, load_checkpoint, save_checkpoint

#: former beginning of a parameter's name, a regular expression → the present one; the first counts
PRESENT_NAMES = {
    # PFENet
    r"decoder\.merge\.(\d+)\.": r"decoder.init_merge.\1.0.",
    r"decoder\.carry\.(\d+)\.": r"decoder.alpha_conv.\1.0.",
    r"decoder\.refine\.(\d+)\.(\d+)\.": r"decoder.beta_conv.\1.\2.",
    r"decoder\.inner\.": "decoder.inner_cls.",
    r"decoder\.fuse\.": "decoder.res1.0.",
    r"decoder\.refine_all\.": "decoder.res2.",
    # both
    r"decoder\.classify\.": "decoder.cls.",
    # CyCTR
    r"decoder\.query_in\.": "decoder.qry_merge_feat.",
    r"decoder\.support_in\.": "decoder.supp_merge_feat.",
    r"decoder\.transformer\.level$": "decoder.transformer.level_embed",
    r"(.*\.self_attention)\.offsets\.": r"\1.sampling_offsets.",
    r"(.*\.self_attention)\.share\.": r"\1.attention_weights.",
    r"(.*\.self_attention)\.value\.": r"\1.value_proj.",
    r"(.*\.self_attention)\.out\.": r"\1.output_proj.",
    r"(.*\.cross_attention)\.([qkv])\.": r"\1.\2_fc.",
    r"(.*\.cross_attention)\.out\.": r"\1.proj.",
    r"(.*\.layers\.\d+)\.feed\.(\d)\.net\.0\.": r"\1.ffns.\2.0.0.",
    r"(.*\.layers\.\d+)\.feed\.(\d)\.net\.3\.": r"\1.ffns.\2.1.",
    r"(.*\.layers\.\d+)\.norm\.": r"\1.layer_norms.",
    r"decoder\.reduce\.": "decoder.merge_multi_lvl_reduce.",
    r"decoder\.refine\.": "decoder.merge_multi_lvl_sum.",
    r"decoder\.back_out\.": "decoder.pred_supp_qry_proj.",
    r"decoder\.back_in\.": "decoder.supp_init_merge.",
    r"decoder\.back_refine\.": "decoder.supp_beta_conv.",
    r"decoder\.back_classify\.": "decoder.supp_cls.",
}


def present_name(name: str) -> str:
    "The name that a parameter has now; the same for one that was not renamed."
    for former, present in PRESENT_NAMES.items():
        if re.match(former, name): return re.sub(former, present, name, count=1)
    return name


def renamed(state: dict) -> dict:
    "The same tensors under their present names, in the same order."
    if FORMER_NAME not in state: return state  # present names already, or a decoder of one's own
    return {present_name(name): value for name, value in state.items()}


def converted(saved: dict) -> dict:
    "A checkpoint with present names: of a trained model, or of a training to be resumed."
    saved = dict(saved)
    if "model" in saved: saved["model"] = renamed(saved["model"])
    if "models" in saved: saved["models"] = {n: renamed(s) for n, s in saved["models"].items()}
    if "best" in saved:
        best = saved["best"].items()
        saved["best"] = {n: (score, step, renamed(state)) for n, (score, step, state) in best}
    return saved


def has_former_names(saved: dict) -> bool:
    "Whether any weights in a checkpoint have former names."
    states = [saved.get("model", {}), *saved.get("models", {}).values()]
    states += [state for _, _, state in saved.get("best", {}).values()]
    return any(FORMER_NAME in state for state in states)


def main(paths: list[str]) -> str | None:  # what went wrong
    "Convert files in place."
    if not paths: return __doc__
    for path in paths:
        try: saved = load_checkpoint(path)
        except (FileNotFoundError, ValueError) as e: return str(e)
        found = has_former_names(saved)
        if found: save_checkpoint(path, **converted(saved))
        print(f"{path}: converted" if found else f"{path}: nothing to convert")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
