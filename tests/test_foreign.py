"""Evaluation logs of open-unlearning, MUSE and TOFU become the same cells; where they count otherwise, the name or the number says so."""

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
from remnant.foreign import is_foreign
from remnant.functional.text import rouge_l
from remnant.records import Cell
from remnant.score import score_file


def cells(path: Path, **more: Any) -> dict[str, Cell]:
    return {c.metric: c for c in score_file(path, **more)}


def put(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def said(truth: str, text: str, stemmed: float) -> dict[str, Any]:
    return {"rouge1_recall": 0.1, "rougeL_f1": stemmed, "rougeL_recall": 0.2, "input": "q", "ground_truth": truth, "generation": text}


def test_open_unlearnings_muse_log(tmp_path: Path) -> None:
    items = {"0": said("he writes novels", "he writing novel", 1.0), "1": said("a b c", "x", 0.0), "2": said("...", "x", 0.0)}
    log = {
        "forget_verbmem_ROUGE": {"agg_value": 1 / 3, "value_by_index": items},
        "mia_min_k": {"agg_value": 0.9, "value_by_index": {"0": {"score": 0.5}}},
        "privleak": {"agg_value": -79.0},
        "extraction_strength": {"agg_value": 0.25, "value_by_index": {"0": {"score": 0.5}, "1": {"score": 0.0}, "2": {"score": None}}},
        "something_new": {"agg_value": 7.5},
        "forget_min_k_pre": {"value_by_index": {"0": {"score": 0.5}}},
    }
    found = cells(put(tmp_path / "MUSE_EVAL.json", log))
    assert found["verbmem_stemmed"].value == pytest.approx(100 / 3)
    assert found["verbmem"].value == pytest.approx(100 * (rouge_l("he writes novels", "he writing novel") + 0) / 2)
    assert found["verbmem"].status == "ok, 1 unscorable (the log holds no number)"
    assert found["verbmem"].low is not None
    assert found["auc"].value == pytest.approx(10.0)  # there 1 - ours
    assert found["privleak"].value == -79.0
    assert found["extraction_strength"].value == pytest.approx(25.0)
    assert found["extraction_strength"].n == 2
    assert found["something_new"].value == 7.5
    assert "no interval" in found["something_new"].status
    short = cells(put(tmp_path / "MUSE_SUMMARY.json", {"forget_verbmem_ROUGE": 0.5, "mia_loss": 0.8, "privleak": -3.0}))
    assert [short[m].value for m in ("verbmem_stemmed", "mia_loss", "privleak")] == pytest.approx([50.0, 20.0, -3.0])


def test_open_unlearnings_tofu_log(tmp_path: Path) -> None:
    log = {
        "forget_Q_A_Prob": {"agg_value": 0.4, "value_by_index": {"0": {"prob": 0.3, "avg_loss": 1.2}, "1": {"prob": 0.5, "avg_loss": 0.7}}},
        "forget_truth_ratio": {"agg_value": 0.375, "value_by_index": {"0": {"score": 4.0}, "1": {"score": 0.5}}},
        "retain_Truth_Ratio": {"agg_value": 0.25, "value_by_index": {"0": {"score": 4.0}, "1": {"score": 0.5}}},
        "forget_quality": {"agg_value": 0.03},
        "model_utility": {"agg_value": 0.6},
    }
    found = cells(put(tmp_path / "TOFU_EVAL.json", log))
    values = {name: found[name].value for name in found}
    assert values == {
        "tofu_probability_forget": pytest.approx(40.0), "tofu_truth_ratio_forget": pytest.approx(37.5),
        "tofu_truth_ratio_retain": pytest.approx(25.0), "tofu_forget_quality": pytest.approx(3.0), "tofu_utility": pytest.approx(60.0),
    }  # fmt: skip


def muse_text(truth: str, response: str) -> dict[str, Any]:
    return {"prompt": "p", "gt": truth, "response": response, "rougeL": 0.9, "rougeL_recall": 0.9, "rouge1": 0.9, "rouge1_recall": 0.9}


def test_muses_folder(tmp_path: Path) -> None:
    put(tmp_path / "run/verbmem_f/log.json", [muse_text("a b", "a b"), muse_text("a b", "c")])
    put(tmp_path / "run/verbmem_f/agg.json", {"mean_rougeL": 0.9, "max_rougeL": 1.0})
    put(tmp_path / "run/knowmem_r/agg.json", {"mean_rougeL": 0.25})
    put(tmp_path / "run/knowmem_f/log.json", [muse_text("blue", "blue\n\nQuestion: red"), muse_text("blue", "green")])
    put(tmp_path / "run/privleak/auc.json", {"forget_holdout_Min-40%": 0.2386, "forget_holdout_PPL/zlib": 0.3, "retain_holdout_PPL": 0.4})
    found = cells(tmp_path / "run", auc_retrain=0.4772)
    assert found["verbmem"].value == 50.0  # from the texts, not from the stored 0.9
    assert found["verbmem"].low is not None
    assert found["knowmem_forget"].value == 50.0
    assert (found["knowmem_retain"].value, found["knowmem_retain"].low) == (25.0, None)
    assert found["auc"].value == pytest.approx(23.86)
    assert found["mia_zlib"].value == pytest.approx(30.0)
    assert found["privleak"].value == pytest.approx(-50.0)
    alone = cells(tmp_path / "run/privleak/auc.json")["privleak"]
    assert (alone.value, alone.status) == (None, "no reference: give the retrain model's log or AUC")
    put(tmp_path / "retrain/privleak/auc.json", {"forget_holdout_Min-40%": 0.4772})
    assert cells(tmp_path / "run", retrain=tmp_path / "retrain")["privleak"].value == pytest.approx(-50.0)
    with pytest.raises(UserError, match="no AUC"):
        score_file(tmp_path / "run/privleak/auc.json", retrain=put(tmp_path / "x.json", {}))


def tofu_log(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    plain: dict[str, Any] = {}
    for file in ("eval_log_forget.json", "eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"):
        plain[file] = {k: rng.exponential(1.0, 30) for k in ("avg_gt_loss", "avg_paraphrased_loss", "rougeL_recall")}
        plain[file]["average_perturb_loss"] = rng.exponential(1.5, (30, 5))
    log = {f: {k: {str(i): x.tolist() for i, x in enumerate(v)} for k, v in of.items()} for f, of in plain.items()}
    return plain, log


def test_tofus_own_log_equals_its_own_formulas(tmp_path: Path) -> None:
    (plain, log), (other, log_other) = tofu_log(0), tofu_log(1)
    found = cells(put(tmp_path / "eval_log_aggregated.json", log), retrain=put(tmp_path / "retrain.json", log_other))

    def ratio(of: dict[str, Any]) -> Any:  # TOFU's "curr_stat", the inverse of the truth ratio
        return np.exp(of["average_perturb_loss"].mean(-1) - of["avg_paraphrased_loss"])

    forget = ratio(plain["eval_log_forget.json"])
    assert found["tofu_truth_ratio_forget"].value == pytest.approx(100 * np.minimum(forget, 1 / forget).mean())
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
    (tmp_path / "lines.json").write_text('{"metric": "verbmem", "id": 1, "truth": "a", "generated": "a"}\n')
    assert not is_foreign(tmp_path / "lines.json")
    assert math.isclose(cells(tmp_path / "lines.json")["verbmem"].value or 0, 100)
    (tmp_path / "torn.json").write_text('{"forget_quality": ')
    done = CliRunner().invoke(cli.main, ["score", str(tmp_path / "torn.json")])
    assert done.exit_code == 2
    assert "not JSON" in done.output
