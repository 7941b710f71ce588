"The paper's numbers, its rows as runs, and results set beside them."
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celp_nb.bundled.scenes import samples
from celp_nb.data import recognition
from celp_nb.data.coco import COCO_CLASSES
from celp_nb.data.voc import PASCAL_CLASSES
from celp_nb.repro.comparison import (
    changed_from_preset,
    compare_with_paper,
    comparison_text,
    read_runs,
    read_table,
)
from celp_nb.repro.config import (
    SECTIONS,
    RunConfig,
    change_config,
    flat_config,
    make_config,
    read_config,
    rules_of_run,
    write_config,
)
from celp_nb.repro.defaults import resolve
from celp_nb.repro.presets import (
    PRESETS,
    check_preset,
    most_steps,
    paper_ablations,
    paper_scores,
    preset_config,
    presets_table,
    unequal_means,
)
from celp_nb.repro.report import data_warning
from celp_nb.repro.runs import read_results
from celp_nb.repro.setup import prepare

SHARED = Path(os.environ.get("CELP_SHARED", Path(__file__).resolve().parents[2] / "shared"))


# --- the paper's numbers


@pytest.mark.skipif(not (SHARED / "paper").is_dir(), reason=f"the paper is not in {SHARED}/paper")
@pytest.mark.parametrize(
    "name, read", [("tables_1_to_4.csv", paper_scores), ("tables_5_to_7.csv", paper_ablations)]
)
def test_the_papers_numbers_are_the_papers(name, read):
    given, ours = pd.read_csv(SHARED / "paper" / name, dtype={"value": str}), read()
    pd.testing.assert_frame_equal(ours[list(given)], given)


def test_stated_means_that_are_not_the_means_of_their_folds():
    wrong = unequal_means(paper_scores())
    found = wrong[["table", "method", "backbone", "shot", "mean"]].values.tolist()
    assert found == [
        [1, "PFENet [28]", "ResNet-50", 1, 60.8],
        [2, "PPNet [19]", "ResNet-50", 5, 36.2],
    ]  # 60.725 and 36.275 by hand
    made_up = pd.DataFrame(
        [[10.0, 20.0, 30.0, 40.2, mean] for mean in (25.0, 25.1, 24.9, 25.2)],
        columns=["fold0", "fold1", "fold2", "fold3", "mean"],
    )  # the mean is 25.05
    assert unequal_means(made_up)["mean"].tolist() == [24.9, 25.2]


# --- presets: section 5.2, by hand

PASCAL = {
    "side": 473,
    "crop": 473,
    "reference": 473,
    "scale": (0.9, 1.1),
    "epochs": 200,
    "batch": 4,
    "lr": 0.025,
    "bins": (60, 30, 15, 8),
}
COCO = {
    "side": 641,
    "crop": 641,
    "reference": 641,
    "scale": (0.8, 1.25),
    "epochs": 50,
    "batch": 8,
    "lr": 0.05,
    "bins": (1.0, 0.5, 0.25, 0.125),
}
COCO_CYCTR = {**COCO, "side": 473, "crop": 473, "reference": 473}
ALL = {
    "shots": (1, 5),
    "optimiser": "sgd",
    "weight_decay": 0.0001,
    "transformer_lr": 0.0001,
    "dropout": 0.5,
    "delta": 0.65,
    "sigma": 11,
    "contrast": 0.1,
    "pairs": 1000,
    "trivial": False,
    "select": "last",
    "n_folds": 4,
    "folds": (0, 1, 2, 3),
    "iterations": None,
    "weights": None,
    "extra": (),
    "protocol": "pairs",
}
EXPECTED = {
    "pascal-pfenet-vgg16": ("vgg16_bn", "PFENet", 256, PASCAL),
    "pascal-pfenet-ce-vgg16": ("vgg16_bn", "PFENet+CE", 256, PASCAL),
    **{
        f"pascal-{method.lower().replace('+', '-')}-{net}": (
            net,
            method,
            384 if "CyCTR" in method else 256,
            PASCAL,
        )
        for net in ("resnet50", "resnet101")
        for method in ("PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE")
    },
    "coco-pfenet-ce-resnet50": ("resnet50", "PFENet+CE", 256, COCO),
    "coco-pfenet-resnet101": ("resnet101", "PFENet", 256, COCO),
    "coco-pfenet-ce-resnet101": ("resnet101", "PFENet+CE", 256, COCO),
    "coco-cyctr-resnet50": ("resnet50", "CyCTR", 384, COCO_CYCTR),
    "coco-cyctr-ce-resnet50": ("resnet50", "CyCTR+CE", 384, COCO_CYCTR),
}


def test_there_is_a_preset_for_each_row_of_ours():
    assert set(PRESETS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_resolves_to_what_section_5_2_says(name, tmp_path):
    backbone, method, width, of_data = EXPECTED[name]
    c = flat_config(resolve(change_config(preset_config(name), data=str(tmp_path))))
    assert {k: c[k] for k in (*ALL, *of_data)} == {**ALL, **of_data}
    assert (c["preset"], c["backbone"], c["methods"], c["width"]) == (
        name,
        backbone,
        (method,),
        width,
    )
    assert c["precision"] in ("bf16", "float32")


@pytest.mark.parametrize(
    "name, shot1, shot5, fb",
    [
        ("pascal-pfenet-vgg16", 58.0, 59.0, None),
        ("pascal-pfenet-ce-resnet50", 64.1, 67.1, 74.6),
        ("pascal-cyctr-resnet101", 64.3, 66.6, 72.9),
        ("coco-cyctr-resnet50", 37.8, 41.1, None),
        ("coco-pfenet-resnet101", 32.4, 37.4, 58.6),
    ],
)
def test_a_preset_knows_its_row_and_lists_it(name, shot1, shot5, fb):
    p, scores = PRESETS[name], paper_scores()
    row = scores[
        scores.table.isin(p.tables) & (scores.plain == p.row[0]) & (scores.backbone == p.row[1])
    ].set_index(["metric", "shot"])["mean"]
    assert (row["mIoU", 1], row["mIoU", 5], row.get(("FB-IoU", 1))) == (shot1, shot5, fb)
    line = next(x for x in presets_table().splitlines() if f"| {name} " in x)
    assert [x.strip() for x in line.split("|")][-3:-1] == [f"{shot1:.1f}", f"{shot5:.1f}"]


def test_the_list_says_by_which_rules_a_preset_runs(monkeypatch, tmp_path):
    "Those that its run gets on its benchmark; the text says what less of it gets."
    monkeypatch.setattr(recognition, "folder_benchmark", lambda folder: "pascal-5i")
    rows = [[x.strip() for x in line.split("|")] for line in presets_table().splitlines()]
    header, shown = rows[0], {row[1]: row for row in rows[2:] if len(row) > 1}
    assert shown.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        data = replace(preset.config.data, folder=str(tmp_path))
        assert shown[name][header.index("rules")] == rules_of_run(data).name == "literature"
    monkeypatch.undo()
    assert rules_of_run(data).name == "strict" and "strict, which are ours" in presets_table()


def test_what_a_row_costs():
    assert (
        most_steps(PRESETS["pascal-pfenet-resnet50"]) == 297650
        and most_steps(PRESETS["coco-pfenet-resnet101"]) == 513006
    )


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="no preset 'pascal-pfenet-r50'; the nearest are pascal-pfenet-resnet50"
    ):
        preset_config("pascal-pfenet-r50")
    with pytest.raises(ValueError, match="no preset 'x'"):
        prepare(make_config(preset="x"))


def test_a_preset_is_refused_on_other_classes():
    pascal, coco = (
        change_config(preset_config(name), data="/there")
        for name in ("pascal-pfenet-resnet50", "coco-cyctr-resnet50")
    )
    check_preset(pascal, PASCAL_CLASSES)
    check_preset(coco, COCO_CLASSES)
    check_preset(RunConfig(), ["anything"])
    for config, names, said in [
        (pascal, COCO_CLASSES, "/there does not"),
        (coco, PASCAL_CLASSES, "80 classes"),
        (pascal, PASCAL_CLASSES[::-1], "in this order"),
        (pascal, PASCAL_CLASSES[:19], "20 classes"),
        (
            change_config(pascal, data="samples"),
            samples("val").class_names,
            "the bundled samples do not",
        ),
    ]:
        with pytest.raises(ValueError, match=said) as raised:
            check_preset(config, names)
        assert config.preset in str(raised.value) and "\n" not in str(raised.value)


# --- results beside the paper


def results(
    data="pascal5i",
    seeds=(0,),
    folds=(0, 1, 2, 3),
    backbone="resnet50",
    methods=("PFENet+CE",),
    benchmark="pascal-5i",
    **more,
):
    "Scores of 50 + fold + seed (mIoU) and 60 + seed (FB-IoU)."
    return pd.DataFrame(
        [
            {
                "data": data,
                "benchmark": benchmark,
                "backbone": backbone,
                "fold": f,
                "method": m,
                "shots": k,
                "miou": 50.0 + f + s,
                "fb_iou": 60.0 + s,
                "confusion": 1.0,
                "episodes": 5000,
                "iterations": 100 + f,
                "seed": s,
                **more,
            }
            for s in seeds
            for f in folds
            for m in methods
            for k in (1, 5)
        ]
    )


def test_weights_and_precision_stand_beside_the_scores(tmp_path):
    "A fingerprint of figures alone stays a text, and files of earlier versions are read."
    files = {
        "old": results(seeds=(0,)),
        "new": results(seeds=(1,), weights="0123456789", precision="float32"),
        "other": results(seeds=(2,), weights="12345e6789", precision="bf16"),
    }
    for name, table in files.items():
        table.assign(run="r").to_csv(tmp_path / f"{name}.csv", index=False)
    text = lambda *names: comparison_text(compare_with_paper(pd.concat(
        [read_table(tmp_path / f"{name}.csv") for name in names]
    )))
    assert "weights" not in text("old") and "Warning: not all" not in text("old", "new")
    assert "; float32; weights 0123456789." in text("old", "new")
    assert (
        "Warning: not all scores have the same weights (0123456789, 12345e6789) and "
        "precision (bf16, float32)." in text("new", "other")
    )


def at(comparison, shots, metric, fold, method="PFENet+CE"):
    c = comparison
    return c[
        (c.shots == shots) & (c.metric == metric) & (c.fold == fold) & (c.method == method)
    ].iloc[0]


def test_results_stand_beside_their_row():
    c = compare_with_paper(pd.concat([results(), results(methods=("all foreground",))]))
    assert set(c.method) == {"PFENet+CE"} and c.comparable.all() and len(c) == 2 * 2 * 5
    assert at(c, 1, "mIoU", 2).paper == 64.6 and at(c, 1, "mIoU", 2).difference == pytest.approx(
        52 - 64.6
    )
    assert at(c, 5, "mIoU", "mean").paper == 67.1 and at(c, 5, "mIoU", "mean").ours == 51.5
    assert np.isnan(at(c, 1, "FB-IoU", 0).paper) and at(
        c, 5, "FB-IoU", "mean"
    ).difference == pytest.approx(60 - 77.0)
    coco = compare_with_paper(results("coco20i", methods=("CyCTR",), benchmark="coco-20i"))
    assert at(coco, 1, "mIoU", 0, "CyCTR").paper == 36.8 and coco.comparable.all()
    deep = compare_with_paper(results(backbone="resnet101_deep", methods=("PFENet",)))
    assert at(deep, 5, "mIoU", 3, "PFENet").paper == 57.6
    stepped = compare_with_paper(results(backbone="resnet101_deep_stepped", methods=("PFENet",)))
    assert at(stepped, 5, "mIoU", 3, "PFENet").paper == 57.6


def test_a_registered_backbone_is_not_set_beside_the_papers():
    c = compare_with_paper(results(backbone="resnet50_deeplab"))
    assert c.paper.isna().all() and c.difference.isna().all()


def test_a_mean_over_some_folds_is_set_beside_the_paper_over_the_same():
    c = compare_with_paper(results(folds=(1, 3)))
    assert at(c, 1, "mIoU", "mean").ours == 52 and at(c, 1, "mIoU", "mean").paper == pytest.approx(
        (70.6 + 57.7) / 2
    )
    assert np.isnan(at(c, 1, "FB-IoU", "mean").paper)
    text = comparison_text(c)
    assert "Warning: the mean marked † is of folds 1, 3 alone" in text and "mean † |" in text


def test_seeds_are_averaged_and_their_range_given():
    c = compare_with_paper(results(seeds=(0, 1, 8)))
    mean = at(c, 1, "mIoU", "mean")
    assert (mean.ours, mean.low, mean.high, mean.seeds) == (54.5, 51.5, 59.5, "0, 1, 8")
    assert "51.5 to 59.5" in comparison_text(c) and "Seeds 0, 1, 8" in comparison_text(c)
    assert "range" not in comparison_text(compare_with_paper(results()))
    with pytest.raises(ValueError, match="fold 0 of PFENet.CE, 1 shots and seed 0 are there twice"):
        compare_with_paper(pd.concat([results(), results()]))


def test_other_data_are_shown_with_a_warning():
    text = comparison_text(compare_with_paper(results("pascal-part", benchmark="")))
    warning = (
        "Warning: `pascal-part` is not PASCAL-5i but a development set: not comparable, shown for "
        "orientation."
    )
    assert warning in text
    assert "| paper " in text and "64.1" in text
    own = comparison_text(compare_with_paper(results()))
    assert "Warning" not in own and "Not started from a preset" in own
    assert "Not started" not in comparison_text(
        compare_with_paper(results(preset="pascal-pfenet-ce-resnet50"))
    )
    coco = compare_with_paper(results("coco-mini", benchmark=""))
    assert at(coco, 1, "mIoU", "mean").paper == 40.2 and not coco.comparable.any()
    drawn = results("samples", backbone="tiny", benchmark="samples")
    text = comparison_text(compare_with_paper(drawn))
    assert "The paper has no row for PFENet+CE on tiny." in text and "| paper" not in text
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_with_paper(results(methods=("all foreground",)))


def write_run(folder, config, table):
    folder.mkdir(parents=True)
    write_config(folder, config)
    table.to_csv(folder / "results.csv", index=False)
    return folder


def test_runs_that_differ_in_their_seed_alone_come_together(tmp_path):
    base = change_config(
        preset_config("pascal-pfenet-ce-resnet50"),
        data=str(tmp_path),
        precision="float32",
        folds=(0, 1, 2, 3),
    )
    runs = [
        write_run(tmp_path / f"s{s}", change_config(base, seed=s), results(seeds=(s,)))
        for s in (0, 1)
    ]
    other = write_run(
        tmp_path / "short",
        change_config(base, epochs=None, iterations=300, side=241),
        results(seeds=(0,), selection="last"),
    )
    c = compare_with_paper(read_runs([*runs, other]))
    assert set(c.run) == {f"{runs[0]} + {runs[1]}", str(other)} and set(c.selection) == {"last"}
    text = comparison_text(c)
    assert (
        text.count("Settings that are not the row's") == 1
        and "side 241, iterations 300." in text
        and "preset pascal-pfenet-ce-resnet50" in text
    )
    assert changed_from_preset(base) == {}
    assert changed_from_preset(make_config(n_folds=2)) == {"n_folds": 2}
    assert changed_from_preset(change_config(base, bins=(1.0, 0.5))) == {"bins": (1.0, 0.5)}
    assert changed_from_preset(change_config(base, precision="float32", weights="imagenet")) == {}
    own = change_config(base, precision="bf16", weights="own.pth")
    assert changed_from_preset(own) == {"weights": "own.pth", "precision": "bf16"}
    with pytest.raises(FileNotFoundError, match="gone"):
        read_runs([tmp_path / "gone"])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv holds no results"):
        read_runs([tmp_path / "other.csv"])


def test_readers_are_none_on_a_cpu_and_not_fewer(monkeypatch):
    assert resolve(make_config(device="cpu")).runtime.workers == 0
    assert resolve(make_config(device="cpu", workers=3)).runtime.workers == 3
    with pytest.raises(ValueError, match="workers is -1; it must be 0 or more"):
        resolve(make_config(workers=-1))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    resolved = resolve(make_config(precision="float32"))
    assert resolved.runtime.workers == 3  # each of four processes has a quarter of the cores


# --- settings


def test_methods_and_kept_views_are_open_until_the_data_are_known(tmp_path):
    config = make_config()
    assert config.model.methods is None and config.runtime.cache_views is None
    samples, folder = resolve(config), resolve(make_config(data=str(tmp_path)))
    four, heavier = ("PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE"), "+CE contrast=1"
    assert set(samples.model.methods) == {*four, f"PFENet{heavier}", f"CyCTR{heavier}"}
    assert folder.model.methods == four
    assert (samples.runtime.cache_views, folder.runtime.cache_views) == (2, 0)
    given = resolve(make_config(methods=("CyCTR",), cache_views=0))
    assert given.model.methods == ("CyCTR",) and given.runtime.cache_views == 0


def test_settings_of_an_earlier_recipe_are_read_as_they_were_written(tmp_path):
    "Once methods, views and the optimiser of the samples were other ones: the file says them."
    earlier = resolve(
        make_config(
            methods=("PFENet", "PFENet+CE"), cache_views=0, optimiser="sgd", lr=0.2, iterations=400
        )
    )
    write_config(tmp_path, earlier)
    assert read_config(tmp_path) == earlier == resolve(read_config(tmp_path))
    write_config(tmp_path, make_config())
    assert read_config(tmp_path) == make_config(), "an open setting stays open"


def test_a_preset_keeps_no_views():
    preset = preset_config("pascal-cyctr-ce-resnet50")
    assert preset.runtime.cache_views == 0 and preset.model.methods == ("CyCTR+CE",)
    assert changed_from_preset(change_config(preset, cache_views=2)) == {"cache_views": 2}


def test_a_setting_is_known_by_its_flat_name():
    config = make_config(data="DIR", seed=3, width=64, shots=(2,), iterations=5)
    assert (config.data.folder, config.runtime.seed, config.model.width) == ("DIR", 3, 64)
    assert (config.evaluation.shots, config.optimisation.iterations) == ((2,), 5)
    assert make_config(**flat_config(config)) == config
    changed = change_config(config, width=None, preset="x")
    assert changed.preset == "x" and changed.data is config.data
    assert {k for k, v in flat_config(changed).items() if v != flat_config(config)[k]} == {
        "preset",
        "width",
    }


def test_an_unknown_setting_is_refused_with_the_nearest():
    for make in (make_config, lambda **s: change_config(RunConfig(), **s)):
        with pytest.raises(ValueError, match="no setting 'iteration'; the nearest is 'iterations'"):
            make(iteration=3)


@pytest.mark.parametrize(
    "name, value",
    [
        ("protocol", "turn"),
        ("void", "visible"),
        ("select", "best"),
        ("optimiser", "adam"),
        ("device", "tpu"),
        ("precision", "fp16"),
    ],
)
def test_a_value_that_is_no_choice_is_named_with_the_choices(name, value):
    with pytest.raises(ValueError, match=f"there is no {name} '{value}'; choose one of "):
        resolve(make_config(**{name: value}))


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "001", "NA", "1e3", "nan", "True"])
def test_a_name_is_text_and_no_benchmark(tmp_path, name):
    results(data=name, benchmark="").to_csv(tmp_path / "results.csv", index=False)
    found = read_runs([tmp_path])
    assert set(found.data) == {name} and set(found.benchmark) == {""}
    c = compare_with_paper(found)
    assert not c.comparable.any()
    assert re.search(f"Warning: `{name}` is not .* but a development set", comparison_text(c))
    assert "not PASCAL-5i or COCO-20i" in data_warning(name, "")
    older = results(data=name).drop(columns="benchmark")
    older.to_csv(tmp_path / "results.csv", index=False)
    assert not compare_with_paper(read_runs([tmp_path])).comparable.any(), "not said: not so"


def test_damaged_results_are_named_with_line_and_column(tmp_path):
    results().to_csv(tmp_path / "results.csv", index=False)
    text = (tmp_path / "results.csv").read_text()
    for damaged, message in [
        (text.replace("50.0", "fifty", 1), "line 2, column miou: 'fifty' is no number"),
        (text[:-30], r"line 9: \d+ values where the header names 12 columns"),
        ("<html></html>\n", "holds no results .'backbone' is missing"),
        ("", "holds no results"),
    ]:
        (tmp_path / "results.csv").write_text(damaged)
        for read in (lambda folder: read_runs([folder]), read_results):
            with pytest.raises(ValueError, match=message) as raised:
                read(tmp_path)
            assert "results.csv" in str(raised.value) and "\n" not in str(raised.value)


def test_settings_of_an_earlier_version_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"data": "samples", "preset": null, "seed": 0}')
    with pytest.raises(ValueError, match="config.json .* of an earlier version") as raised:
        read_config(tmp_path)
    assert "start a new one" in str(raised.value) and "\n" not in str(raised.value)
    write_results(tmp_path)
    with pytest.warns(UserWarning, match="of an earlier version.* scores are shown without"):
        assert read_runs([tmp_path]).preset.eq("").all()
    for damaged in ('{"data": {}', "[]", '{"data": {"folder": "x"}}', '{"data": {"other": 1}}'):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match="holds no settings of a run|not a JSON file"):
            read_config(tmp_path)


def write_results(folder):
    results().to_csv(folder / "results.csv", index=False)


def test_written_settings_are_grouped(tmp_path):
    base = preset_config("coco-cyctr-resnet50")
    write_run(tmp_path / "run", base, results())
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert list(written) == ["preset", *SECTIONS] and written["optimisation"]["epochs"] == 50
    assert read_config(tmp_path / "run") == base


def test_episode_lists_and_unequal_seeds_are_said():
    table = results(seeds=(0, 1))
    own = comparison_text(compare_with_paper(table))
    assert "Seeds 0, 1;" in own and "episode lists 0, 1;" in own  # of an older version
    shared = comparison_text(compare_with_paper(table.assign(episode_seed=0)))
    assert "episode list 0;" in shared and "seeds differ" not in shared
    other = results(seeds=(0,)).assign(method="PFENet")
    both = comparison_text(compare_with_paper(pd.concat([table, other])))
    assert "Warning: the seeds differ (PFENet+CE: 0, 1; PFENet: 0); compare rows of equal" in both


def test_another_list_is_no_change_of_a_preset():
    base = preset_config("pascal-pfenet-ce-resnet50")
    assert changed_from_preset(change_config(base, episode_seed=4)) == {}
