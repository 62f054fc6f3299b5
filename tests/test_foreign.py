"""Evaluation logs of open-unlearning, MUSE and TOFU become the same cells.

Where they count otherwise, the name or the number says so.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import hmean, ks_2samp

from remnant import cli
from remnant.errors import UserError
from remnant.foreign.find import find
from remnant.functional.text import rouge_l
from remnant.records import Cell
from remnant.score import score_file, scored


def cells(path: Path, **more: Any) -> dict[str, Cell]:
    return {c.metric: c for c in score_file(path, **more)}


def put(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def said(truth: str, text: str, stemmed: float) -> dict[str, Any]:
    return {
        "rouge1_recall": 0.1,
        "rougeL_f1": stemmed,
        "rougeL_recall": 0.2,
        "input": "q",
        "ground_truth": truth,
        "generation": text,
    }


def test_open_unlearnings_muse_log(tmp_path: Path) -> None:
    items = {
        "0": said("he writes novels", "he writing novel", 1.0),
        "1": said("a b c", "x", 0.0),
        "2": said("...", "x", 0.0),
    }
    log = {
        "forget_verbmem_ROUGE": {"agg_value": 1 / 3, "value_by_index": items},
        "mia_min_k": {"agg_value": 0.9, "value_by_index": {"0": {"score": 0.5}}},
        "privleak": {"agg_value": -79.0},
        "extraction_strength": {
            "agg_value": 0.25,
            "value_by_index": {"0": {"score": 0.5}, "1": {"score": 0.0}, "2": {"score": None}},
        },
        "something_new": {"agg_value": 7.5},
        "forget_min_k_pre": {"value_by_index": {"0": {"score": 0.5}}},
    }
    found = cells(put(tmp_path / "MUSE_EVAL.json", log))
    assert found["verbmem_stemmed"].value == pytest.approx(100 / 3)
    assert found["verbmem"].value == pytest.approx(
        100 * (rouge_l("he writes novels", "he writing novel") + 0) / 2
    )
    assert found["verbmem"].status == "ok, 1 unscorable (the truth has no letter a-z and no digit)"
    assert found["verbmem"].low is not None
    assert found["auc"].value == pytest.approx(10.0)  # there 1 - ours
    assert found["privleak"].value == -79.0
    assert found["extraction_strength"].value == pytest.approx(25.0)
    assert found["extraction_strength"].n == 2
    assert "something_new" not in found
    assert "something_new" in " ".join(scored(tmp_path / "MUSE_EVAL.json").notes)
    short = cells(
        put(
            tmp_path / "MUSE_SUMMARY.json",
            {"forget_verbmem_ROUGE": 0.5, "mia_loss": 0.8, "privleak": -3.0},
        )
    )
    assert [short[m].value for m in ("verbmem_stemmed", "mia_loss", "privleak")] == pytest.approx(
        [50.0, 20.0, -3.0]
    )


def test_open_unlearnings_tofu_log(tmp_path: Path) -> None:
    log = {
        "forget_Q_A_Prob": {
            "agg_value": 0.4,
            "value_by_index": {
                "0": {"prob": 0.3, "avg_loss": 1.2},
                "1": {"prob": 0.5, "avg_loss": 0.7},
            },
        },
        "forget_truth_ratio": {
            "agg_value": 0.375,
            "value_by_index": {"0": {"score": 4.0}, "1": {"score": 0.5}},
        },
        "retain_Truth_Ratio": {
            "agg_value": 0.25,
            "value_by_index": {"0": {"score": 4.0}, "1": {"score": 0.5}},
        },
        "forget_quality": {"agg_value": 0.03},
        "model_utility": {"agg_value": 0.6},
    }
    found = cells(put(tmp_path / "TOFU_EVAL.json", log))
    values = {name: found[name].value for name in found}
    assert values == {
        "tofu_probability_forget": pytest.approx(40.0),
        "tofu_truth_ratio_forget": pytest.approx(37.5),
        "tofu_truth_ratio_retain": pytest.approx(25.0), "tofu_forget_quality": pytest.approx(3.0),
        "tofu_utility": pytest.approx(60.0),
    }  # fmt: skip


def muse_text(truth: str, response: str) -> dict[str, Any]:
    return {
        "prompt": "p",
        "gt": truth,
        "response": response,
        "rougeL": 0.9,
        "rougeL_recall": 0.9,
        "rouge1": 0.9,
        "rouge1_recall": 0.9,
    }


def test_muses_folder(tmp_path: Path) -> None:
    put(tmp_path / "run/verbmem_f/log.json", [muse_text("a b", "a b"), muse_text("a b", "c")])
    put(tmp_path / "run/verbmem_f/agg.json", {"mean_rougeL": 0.9, "max_rougeL": 1.0})
    put(tmp_path / "run/knowmem_r/agg.json", {"mean_rougeL": 0.25})
    put(
        tmp_path / "run/knowmem_f/log.json",
        [muse_text("blue", "blue\n\nQuestion: red"), muse_text("blue", "green")],
    )
    put(
        tmp_path / "run/privleak/auc.json",
        {
            "forget_holdout_Min-40%": 0.2386,
            "forget_holdout_PPL/zlib": 0.3,
            "retain_holdout_PPL": 0.4,
        },
    )
    found = cells(tmp_path / "run", auc_retrain=0.4772)
    assert found["verbmem"].value == 50.0  # from the texts, not from the stored 0.9
    assert found["verbmem"].low is not None
    assert found["knowmem_forget"].value == 50.0
    assert (found["knowmem_retain"].value, found["knowmem_retain"].low) == (25.0, None)
    assert found["auc"].value == pytest.approx(23.86)
    assert found["mia_zlib"].value == pytest.approx(30.0)
    assert found["privleak"].value == pytest.approx(-50.0)
    alone = cells(tmp_path / "run/privleak/auc.json")["privleak"]
    assert (alone.value, alone.status) == (
        None,
        "no reference: give the retrain model's log (--retrain) or AUC (--auc-retrain)",
    )
    put(tmp_path / "retrain/privleak/auc.json", {"forget_holdout_Min-40%": 0.4772})
    assert cells(tmp_path / "run", retrain=tmp_path / "retrain")["privleak"].value == pytest.approx(
        -50.0
    )
    with pytest.raises(UserError, match="no evaluation log"):
        score_file(tmp_path / "run/privleak/auc.json", retrain=put(tmp_path / "x.json", {}))
    with pytest.raises(UserError, match="no AUC with Min-40%"):
        score_file(
            tmp_path / "run/privleak/auc.json",
            retrain=put(tmp_path / "y/auc.json", {"forget_holdout_PPL": 0.5}),
        )


def tofu_log(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    plain: dict[str, Any] = {}
    for file in (
        "eval_log_forget.json",
        "eval_log.json",
        "eval_real_author_wo_options.json",
        "eval_real_world_wo_options.json",
    ):
        plain[file] = {
            k: rng.exponential(1.0, 30) for k in ("avg_gt_loss", "avg_paraphrased_loss")
        } | {"rougeL_recall": rng.uniform(size=30)}
        plain[file]["average_perturb_loss"] = rng.exponential(1.5, (30, 5))
    log: dict[str, Any] = {}
    for file, of in plain.items():
        log[file] = {}
        for key, values in of.items():
            log[file][key] = {str(i): x.tolist() for i, x in enumerate(values)}
    return plain, log


def test_tofus_own_log_equals_its_own_formulas(tmp_path: Path) -> None:
    (plain, log), (other, log_other) = tofu_log(0), tofu_log(1)
    found = cells(
        put(tmp_path / "eval_log_aggregated.json", log),
        retrain=put(tmp_path / "retrain.json", log_other),
    )

    def ratio(of: dict[str, Any]) -> Any:  # TOFU's "curr_stat", the inverse of the truth ratio
        return np.exp(of["average_perturb_loss"].mean(-1) - of["avg_paraphrased_loss"])

    forget = ratio(plain["eval_log_forget.json"])
    assert found["tofu_truth_ratio_forget"].value == pytest.approx(
        100 * np.minimum(forget, 1 / forget).mean()
    )
    expected = ks_2samp(forget, ratio(other["eval_log_forget.json"])).pvalue
    assert found["tofu_forget_quality"].value == pytest.approx(100 * expected)
    nine = []
    for file, of in list(plain.items())[1:]:
        chance = np.exp(-of["avg_gt_loss"])
        if file != "eval_log.json":
            chance = chance / (chance + np.exp(-of["average_perturb_loss"]).sum(-1))
        nine += [chance.mean(), of["rougeL_recall"].mean(), np.maximum(0, 1 - 1 / ratio(of)).mean()]
    assert found["tofu_utility"].value == pytest.approx(100 * hmean(nine))
    del log["eval_log.json"]["rougeL_recall"]
    with pytest.raises(UserError, match="no column rougeL_recall"):
        score_file(put(tmp_path / "bad.json", log))


def test_what_is_no_log_is_one_sentence(tmp_path: Path) -> None:
    for path in (put(tmp_path / "a.json", {"x": 1}), put(tmp_path / "b.json", [1, 2]), tmp_path):
        done = CliRunner().invoke(cli.main, ["score", str(path)])
        assert done.exit_code == 2
        assert "no evaluation log that is known" in done.output
    (tmp_path / "lines.json").write_text(
        '{"metric": "verbmem", "id": 1, "truth": "a", "generated": "a"}\n'
    )
    assert find(tmp_path / "lines.json")[0][0].tool == "lines"
    assert math.isclose(cells(tmp_path / "lines.json")["verbmem"].value or 0, 100)
    (tmp_path / "torn.json").write_text('{"forget_quality": ')
    done = CliRunner().invoke(cli.main, ["score", str(tmp_path / "torn.json")])
    assert done.exit_code == 2
    assert "not JSON" in done.output


TRUE = {
    "forget_verbmem_ROUGE": {
        "agg_value": 0.5,
        "value_by_index": {"0": said("a b", "a b", 1.0), "1": said("a b", "c", 0.0)},
    }
}


def test_models_of_one_folder_are_never_mixed(tmp_path: Path) -> None:
    put(tmp_path / "saves/target/MUSE_EVAL.json", TRUE)
    put(tmp_path / "saves/npo/MUSE_SUMMARY.json", {"forget_verbmem_ROUGE": 0.1})
    put(tmp_path / "saves/npo/checkpoint-5/evals/MUSE_SUMMARY.json", {"forget_verbmem_ROUGE": 0.2})
    put(tmp_path / "saves/npo/config.json", {"hidden_size": 4})
    (tmp_path / "saves/lines.jsonl").write_text(
        '{"metric": "verbmem", "id": 1, "truth": "a", "generated": "a"}\n'
    )
    (tmp_path / "saves/trainer.jsonl").write_text('{"loss": 1}\n')
    (tmp_path / "saves/._hidden_EVAL.json").write_bytes(b"\0\1")
    found, notes = scored(tmp_path / "saves")
    assert {(c.model, c.metric): c.value for c in found} == {
        ("target", "verbmem_stemmed"): 50.0, ("target", "verbmem"): 50.0, ("npo",
        "verbmem_stemmed"): 10.0,
        ("npo/checkpoint-5/evals", "verbmem_stemmed"): 20.0, ("lines", "verbmem"): 100.0,
    }  # fmt: skip
    assert notes == ["Not logs, left out: npo/config.json, trainer.jsonl."]
    shown = CliRunner().invoke(
        cli.main, ["score", str(tmp_path / "saves"), "--json", str(tmp_path / "out.json")]
    )
    assert shown.exit_code == 0
    assert all(
        name in shown.output for name in ("target", "npo/checkpoint-5/evals", "Not logs, left out")
    )
    assert {c["model"] for c in json.loads((tmp_path / "out.json").read_text())["cells"]} == {
        "target",
        "npo",
        "npo/checkpoint-5/evals",
        "lines",
    }
    one = put(tmp_path / "r/a/auc.json", {"forget_holdout_Min-40%": 0.5})
    put(tmp_path / "r/b/auc.json", {"forget_holdout_Min-40%": 0.6})
    with pytest.raises(UserError, match="holds the logs of 2 models: a, b"):
        score_file(one, retrain=tmp_path / "r")


def test_two_logs_of_one_model_that_say_the_same_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a/verbmem_f/log.json", [muse_text("a", "a")])
    put(tmp_path / "a/verbmem_f/history.json", [muse_text("a", "b")])
    with pytest.raises(UserError, match="both hold verbmem of one model"):
        score_file(tmp_path / "a")
    put(tmp_path / "b/TOFU_EVAL.json", {"extraction_strength": {"agg_value": 0.1}})
    put(tmp_path / "b/MUSE_EVAL.json", {"extraction_strength": {"agg_value": 0.2}})
    assert {c.model: c.value for c in score_file(tmp_path / "b")} == {
        "b (MUSE)": 20.0,
        "b (TOFU)": 10.0,
    }
    put(tmp_path / "c/x/MUSE_EVAL.json", {"extraction_strength": {"agg_value": 0.2}})
    put(tmp_path / "c/x/agg.json", {"mean_rougeL": 0.2})
    assert "does not say which metric" in scored(tmp_path / "c").notes[0]


def scores(values: list[float]) -> dict[str, Any]:
    return {
        "agg_value": 0.0,
        "value_by_index": {str(i): {"score": v} for i, v in enumerate(values)},
    }


def open_log(
    forget: list[float], holdout: list[float], ratios: list[float], stored: float = -50.0
) -> dict[str, Any]:
    # There the AUC is the chance that holdout text has the larger loss: 1 - ours.
    auc = sum((h > f) + (h == f) / 2 for f in forget for h in holdout) / len(forget) / len(holdout)
    return {
        "mia_min_k": {
            "auc": auc,
            "agg_value": auc,
            "forget": scores(forget),
            "holdout": scores(holdout),
        },
        "privleak": {"agg_value": stored},
        "forget_truth_ratio": {
            "agg_value": sum(min(r, 1 / r) for r in ratios) / len(ratios),
            "value_by_index": scores(ratios)["value_by_index"],
        },
        "forget_quality": {"agg_value": 0.9},
    }


def test_open_unlearnings_privleak_and_forget_quality_are_made_again_against_a_given_retrain_model(
    tmp_path: Path,
) -> None:
    own = put(
        tmp_path / "a/TOFU_EVAL.json",
        open_log([0.1, 0.2, 0.3, 2.0], [1.0, 1.5, 2.5], [0.5, 1.5, 2.0, 4.0]),
    )
    other = put(
        tmp_path / "r/TOFU_EVAL.json",
        open_log([1.0, 2.0, 0.5, 3.0], [1.0, 1.5, 2.5], [0.4, 0.5, 0.6, 5.0]),
    )
    as_stored = cells(own)
    assert (as_stored["privleak"].value, as_stored["tofu_forget_quality"].value) == (-50.0, 90.0)
    assert "against the reference of the log's own run" in as_stored["privleak"].status
    assert as_stored["auc"].value == pytest.approx(100 * 2 / 12)
    assert as_stored["auc"].low is not None
    found = cells(own, retrain=other)
    there = sum((h < f) + (h == f) / 2 for f in (1.0, 2.0, 0.5, 3.0) for h in (1.0, 1.5, 2.5)) / 12
    assert found["privleak"].value == pytest.approx(100 * (2 / 12 - there) / there)
    assert found["privleak"].low is not None
    assert found["tofu_forget_quality"].value == pytest.approx(
        100 * ks_2samp([0.5, 1.5, 2.0, 4.0], [0.4, 0.5, 0.6, 5.0]).pvalue
    )
    assert cells(own, auc_retrain=0.5)["privleak"].value == pytest.approx(
        100 * (2 / 12 - 0.5) / 0.5
    )
    short = put(tmp_path / "s/TOFU_SUMMARY.json", {"privleak": -50.0, "forget_quality": 0.9})
    cannot = cells(
        put(
            tmp_path / "s2/TOFU_SUMMARY.json",
            {"privleak": -50.0, "forget_quality": 0.9, "model_utility": 0.5},
        ),
        retrain=other,
    )
    assert cannot["privleak"].value is None
    assert "no AUC with Min-40%" in cannot["privleak"].status
    assert cannot["tofu_forget_quality"].value is None
    with pytest.raises(UserError, match=r"no AUC with Min-40% .mia_min_k. and no truth ratios"):
        score_file(own, retrain=short)
    fewer = put(tmp_path / "f/TOFU_EVAL.json", open_log([1.0], [0.5], [0.5]))
    assert (
        "holds other questions (1, here 4)"
        in cells(own, retrain=fewer)["tofu_forget_quality"].status
    )
    with pytest.raises(UserError, match=r"AUC in .* is 0"):
        score_file(
            own, retrain=put(tmp_path / "z/TOFU_EVAL.json", {"mia_min_k": {"agg_value": 1.0}})
        )
    with pytest.raises(UserError, match="is a log of MUSE, not of open-unlearning"):
        score_file(own, retrain=put(tmp_path / "m/auc.json", {"forget_holdout_Min-40%": 0.5}))


def test_a_log_whose_items_and_number_disagree_is_not_believed(tmp_path: Path) -> None:
    log = {
        "exact_memorization": {
            "agg_value": 0.9,
            "value_by_index": {"0": {"score": 0.1}, "1": {"score": 0.0}},
        },
        "model_utility": 0.5,
    }
    found = cells(put(tmp_path / "X_EVAL.json", log))["exact_memorization"]
    assert (found.value, found.status) == (
        None,
        "not read: its items give 5.0, the log itself says 90.0",
    )


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ({"forget_verbmem_ROUGE": "0.5"}, "holds '0.5', which is no number"),
        ({"forget_verbmem_ROUGE": True}, "holds True, which is no number"),
        ({"forget_verbmem_ROUGE": 50.0}, "holds 50, which is no number between 0 and 1"),
        ({"forget_verbmem_ROUGE": -0.1}, "holds -0.1, which is no number between 0 and 1"),
        ({"privleak": -101.0}, "holds -101, which is no number of at least -100"),
        ({"privleak": math.inf}, "holds inf"),
        ({"privleak": 10**400}, "beyond all measure"),
        ({"forget_verbmem_ROUGE": {"agg_value": [0.5]}}, r"holds \[0.5\], which is no number"),
        (
            {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"7": {"prob": 1.5}}}},
            "item 7 holds 1.5",
        ),
        (
            {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"7": {"prob": "x"}}}},
            "item 7 holds 'x'",
        ),
        ({"model_utility": math.nan}, "holds no number that can be read: the log holds no number"),
        ({"forget_Q_A_Prob": {"agg_value": None}}, "holds no number that can be read"),
        ({"forget_holdout_Min-40%": 23.86}, "holds 23.86"),
        ({"forget_holdout_Min-40%": "a"}, "holds 'a'"),
    ],
)
def test_what_is_no_number_in_its_range_is_one_sentence_and_never_0(
    log: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        score_file(put(tmp_path / "X_EVAL.json", log), auc_retrain=0.5)


def lists(log: dict[str, Any]) -> dict[str, Any]:
    listed: dict[str, Any] = {}
    for file, of in log.items():
        listed[file] = {key: list(values.values()) for key, values in of.items()}
    return listed


def test_tofus_first_form_in_lists_and_its_single_files_give_the_same_numbers(
    tmp_path: Path,
) -> None:
    _, log = tofu_log(0)
    expected = {
        m: c.value for m, c in cells(put(tmp_path / "eval_log_aggregated.json", log)).items()
    }
    assert len(expected) == 13
    assert {
        m: c.value
        for m, c in cells(put(tmp_path / "lists/eval_log_aggregated.json", lists(log))).items()
    } == pytest.approx(expected)
    for name, part in log.items():
        put(tmp_path / "single/ds_size300" / name, part)
        put(tmp_path / "beside" / name, {k: {} for k in part})
    assert {m: c.value for m, c in cells(tmp_path / "single").items()} == pytest.approx(expected)
    put(tmp_path / "beside/eval_log_aggregated.json", log)
    assert {m: c.value for m, c in cells(tmp_path / "beside").items()} == pytest.approx(
        expected
    )  # the aggregated one goes first
    short = lists(log)
    short["eval_log.json"]["avg_gt_loss"].pop()
    with pytest.raises(UserError, match="different lengths"):
        score_file(put(tmp_path / "short.json", short))


def test_tofus_columns_are_put_together_by_item_and_not_by_their_order(tmp_path: Path) -> None:
    _, log = tofu_log(3)
    expected = {m: c.value for m, c in cells(put(tmp_path / "a.json", log)).items()}
    for i, (_, part) in enumerate(log.items()):
        for j, key in enumerate(part):
            part[key] = dict(
                sorted(
                    part[key].items(), key=lambda item: hash((int(item[0]) * 7 + i * 3 + j) % 31)
                )
            )
    assert {m: c.value for m, c in cells(put(tmp_path / "b.json", log)).items()} == pytest.approx(
        expected
    )
    del log["eval_log.json"]["avg_gt_loss"]["4"]
    log["eval_log_forget.json"]["avg_paraphrased_loss"]["2"] = math.nan
    found = cells(put(tmp_path / "c.json", log))
    assert (found["tofu_probability_retain"].n, found["tofu_rouge_forget"].n) == (29, 29)
    assert found["tofu_rouge_retain"].status == "ok, 1 unscorable (the log holds no number)"


def first_form(folder: Path, model: str, answer: str, auc: float) -> None:
    out = {"mean_rougeL": 0.25, "max_rougeL": 1.0, "model": "m", "max_new_tokens": 32}
    question = {"question": "q"}
    put(
        folder / f"knowmem/out/bbc/{model}/forget/history.json",
        [muse_text("blue", answer) | question, muse_text("red", "red") | question],
    )
    put(folder / f"knowmem/out/bbc/{model}/forget/out.json", out)
    put(folder / f"knowmem/out/bbc/{model}/retain/out.json", out)
    put(folder / f"verbmem/out/bbc/{model}/forget/history.json", [muse_text("a b", "a b")])
    put(folder / f"verbmem/out/bbc/{model}/forget/out.json", out)
    aucs = {
        f"{a}_{b}": {"Min-40%": auc if (a, b) == ("forget", "holdout") else 0.9, "PPL": 0.4}
        for a in ("forget", "holdout")
        for b in ("forget", "holdout")
    }
    put(folder / f"privleak/out/bbc/{model}/auc.json", aucs)


def test_muses_first_form_is_read_by_model(tmp_path: Path) -> None:
    first_form(tmp_path / "muse", "target", "blue", 0.1)
    first_form(tmp_path / "muse", "npo/step=102", "green", 0.3)
    found = {(c.model, c.metric): c.value for c in score_file(tmp_path / "muse", auc_retrain=0.5)}
    assert {m for m, _ in found} == {"out/bbc/target", "out/bbc/npo/step=102"}
    assert found["out/bbc/target", "knowmem_forget"] == 100.0
    assert found["out/bbc/npo/step=102", "knowmem_forget"] == 50.0
    assert found["out/bbc/npo/step=102", "knowmem_retain"] == 25.0
    assert found["out/bbc/npo/step=102", "verbmem"] == 100.0
    assert found["out/bbc/npo/step=102", "auc"] == pytest.approx(30.0)
    assert found["out/bbc/npo/step=102", "mia_loss"] == pytest.approx(40.0)
    assert found["out/bbc/target", "privleak"] == pytest.approx(-80.0)
    one = tmp_path / "muse/knowmem/out/bbc/target/forget/history.json"
    assert cells(one)["knowmem_forget"].value == 100.0
    assert cells(one.with_name("out.json"))["knowmem_forget"].value == 25.0


def test_values_by_text_go_before_stored_aucs(tmp_path: Path) -> None:
    def texts(values: list[float]) -> list[dict[str, Any]]:
        return [{"text": "t", "Min-40%": v, "PPL": v, "Min-5%": v} for v in values]

    log = {"forget": texts([1, 2, 3]), "retain": texts([9]), "holdout": texts([2.5, 0.5])}
    put(tmp_path / "run/privleak/log.json", log)
    put(
        tmp_path / "run/privleak/auc.json",
        {"forget_holdout_Min-40%": 0.66, "forget_holdout_PPL/zlib": 0.2},
    )
    found = cells(tmp_path / "run", retrain=put(tmp_path / "r/privleak/log.json", log))
    assert found["auc"].value == pytest.approx(100 * 4 / 6)
    assert found["auc"].low is not None
    assert (found["mia_zlib"].value, found["mia_zlib"].low) == (20.0, None)
    assert found["privleak"].value == pytest.approx(0.0)
    for side in ("forget", "holdout"):
        put(
            tmp_path / f"first/privleak/out/bbc/ga/{side}.json",
            [{"data_file": "f", "text": "t", "ppl": row} for row in log[side]],
        )
    assert cells(tmp_path / "first")["auc"].value == pytest.approx(100 * 4 / 6)


def test_muses_own_results_are_in_percent_already(tmp_path: Path) -> None:
    found = cells(
        put(
            tmp_path / "out.json",
            {"verbmem_f": 57.9, "knowmem_f": 64.4, "knowmem_r": 55.2, "privleak": -99.8},
        )
    )
    assert [
        found[m].value for m in ("verbmem", "knowmem_forget", "knowmem_retain")
    ] == pytest.approx([57.9, 64.4, 55.2])
    assert found["privleak"].value == pytest.approx(-99.8)


def test_lines_end_at_line_feeds_only_and_what_cannot_be_scored_says_why(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\u0085b", "漢字", "", "\ud800 a b", "x" * 10]
    lines = [
        {"metric": "verbmem", "id": i, "truth": t, "generated": t} for i, t in enumerate(texts)
    ]
    raw = [json.dumps(line, ensure_ascii="\ud800" in str(line["truth"])) for line in lines]
    (tmp_path / "g.jsonl").write_bytes("\r\n".join(raw).encode())
    (found,) = score_file(tmp_path / "g.jsonl")
    assert (found.value, found.n) == (100.0, 6)
    assert found.status.startswith("ok, 1 unscorable (")
    hard = {"metric": "verbmem", "id": "long", "truth": "a " * 5000, "generated": "b " * 5000}
    (tmp_path / "h.jsonl").write_text(json.dumps(hard) + "\n" + json.dumps(lines[0]))
    assert "too long to compare (5000 and 5000 words)" in score_file(tmp_path / "h.jsonl")[0].status
    privleak = [
        {"metric": "privleak", "split": s, "id": i, "value": v}
        for i, (s, v) in enumerate([("forget", 1.0), ("holdout", 2.0)])
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, privleak)))
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(p | {"value": 1.0}) for p in privleak))
    assert cells(tmp_path / "p.jsonl", retrain=tmp_path / "r.jsonl")[
        "privleak"
    ].value == pytest.approx(-100.0)
