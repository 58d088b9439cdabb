"""Tables as they are printed: published figures beside ours, and the protocol below."""

from varlit.cli.report import print_protocol, print_table, told_choice
from varlit.generation.rejection_rule import RejectionCost

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
