"""Tables as they are printed: published figures beside ours, and the protocol below."""

from varlit.cli.results.report import print_protocol, print_table, told_choice, told_quick
from varlit.generation.rejection.rule import RejectionCost

PROTOCOL = {
    "sampling": {
        **{"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96, "guidance": "var", "more_smooth": False},
        **{"seed": 0, "num_images": 50_000, "num_classes": 1000},
    },
    "weights": {"var_sha256": "a" * 64},
    "rounding": "uint8, nearest",
    "sampling_precision": "bf16-mixed",
    "device": "cuda",
    "features": "inception",
    "weights_sha256": "6726825d" + "0" * 56,
    "resize": "299 px, bilinear",
    "references": [
        {"reference": "ours.npz", "reference_images": 1000, "reference_sha256": "b" * 64},
        {"reference": "adm.npz", "reference_images": None, "reference_sha256": "c" * 64},
    ],
    "is_quick": False,
    "remarks": ["few images"],
}


def test_published_figures_stand_in_their_columns(capsys):
    published = {"paper": {"fid": 3.3, "precision": 0.84}, "official README": {"fid": 3.55}}
    print_table("d16", {"fid": 3.47, "precision": 0.83, "sfid": 6.1}, published)
    title, heads, *rows = capsys.readouterr().out.splitlines()
    assert title == "d16"
    assert heads.split() == ["ours", "paper", "official", "README"]
    assert [row.split() for row in rows] == [
        ["fid", "3.47", "3.3", "3.55"],
        ["precision", "0.83", "0.84", "-"],
        ["sfid", "6.1", "-", "-"],
    ]
    assert {len(row) for row in rows} == {len(heads)}


def test_names_for_people_come_first_in_their_order(capsys):
    measures = {"test/loss/mean": 5.0, "fid": 3.47, "inception_score_mean": 280.0}
    titles = {"fid": "FID", "inception_score_mean": "IS", "precision": "precision"}
    print_table("d16", measures, {"paper": {"fid": 3.3}}, titles)
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["FID", "IS", "test/loss/mean"]


def test_a_title_says_that_it_was_a_quick_look():
    assert told_quick({"is_quick": True, "num_images": 5000}) == ": a quick look, 5,000 images"
    assert told_quick({"is_quick": False}) == told_quick({}) == ""


def test_splits_subsets_rows_and_versions_are_printed(capsys):
    measuring = {
        **{"score_splits": 10, "score_seed": 2020, "kid_subsets": 100, "kid_subset_size": 1000},
        **{"kid_seed": 2021, "neighbours": 3, "sample_rows": 9000, "precision_images": 8000},
        **{"recall_images": 7000, "versions": {"torch": "2.0", "Pillow": "12.1"}},
    }
    print_protocol(PROTOCOL | measuring)
    said = capsys.readouterr().out
    assert "IS over 10 shuffled splits, seed 2020" in said
    assert "KID over 100 subsets of 1,000, seed 2021, of 9,000 rows" in said
    assert "k = 3 of 8,000 drawn and 7,000 real" in said
    assert "torch 2.0, Pillow 12.1" in said
    assert "no published figure compares: number of images not told" in said


def test_the_protocol_is_printed_with_all_references_and_remarks(capsys):
    print_protocol(PROTOCOL)
    said = capsys.readouterr().out
    for part in ("50,000 of 1,000 classes", "guidance 1.5 (var)", "inception 6726825d"):
        assert part in said
    assert "ours.npz, 1,000 images, sha256 bbbbbbbb" in said
    assert "adm.npz, images not counted" in said
    assert "beware: few images" in said
    assert "quick" not in said
    print_protocol({"lpips": "vgg"})  # a tokenizer's
    assert capsys.readouterr().out == ""


def test_a_choice_is_printed_with_what_it_took(capsys):
    cost = RejectionCost(num_drawn=200, num_kept=50, num_unjudged=7, draw_s=3.0, classify_s=1.0)
    choice = {"keep": 0.25, "keep_group_size": 50, "classifier": "toy"}
    choice |= {"classifier_weights_sha256": "d" * 64, "classifier_classes": "3,-"}
    sampling = PROTOCOL["sampling"] | choice
    print_protocol(PROTOCOL | {"sampling": sampling, "rejection_cost": cost.to_dict()})
    said = capsys.readouterr().out
    assert "keep 0.25 by toy dddddddd, in groups of 50; its outputs: 3,-" in said
    assert "kept 50 of 200 images drawn (25.0%), and all 7 of other classes; 4.0 s" in said
    assert told_choice(1.0) == ""
    assert told_choice(0.25) == "-re (rejection sampling, keep 0.25)"
