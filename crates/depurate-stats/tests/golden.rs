//! Intervals and ROC curves against SciPy and scikit-learn.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use depurate_stats::{auc, clopper_pearson, roc};
use safetensors::SafeTensors;
use serde_json::Value;

fn case(name: &str) -> (PathBuf, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/metrics")
        .join(name);
    let json = std::fs::read_to_string(folder.join("case.json")).unwrap();
    (folder, serde_json::from_str(&json).unwrap())
}

fn f64s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let bytes = tensors.tensor(name).unwrap().data();
    let (chunks, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty());
    chunks.iter().map(|&c| f64::from_le_bytes(c)).collect()
}

fn i32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<i32> {
    let bytes = tensors.tensor(name).unwrap().data();
    let (chunks, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    chunks.iter().map(|&c| i32::from_le_bytes(c)).collect()
}

fn near(what: &str, got: f64, expected: f64, tolerance: f64) {
    assert!(
        (got - expected).abs() <= tolerance,
        "{what}: got {got}, expected {expected}"
    );
}

#[test]
fn clopper_pearson_matches_scipy() {
    let (_, case) = case("intervals_tvdist");
    let tolerance = case["tolerance"]["intervals"].as_f64().unwrap();
    let rows = case["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 75);
    for row in rows {
        let (k, n) = (row["k"].as_u64().unwrap(), row["n"].as_u64().unwrap());
        let confidence = row["conf"].as_f64().unwrap();
        let got = clopper_pearson(k, n, confidence).unwrap();
        let expected = &row["clopper_pearson"];
        let what = format!("{k} of {n} at {confidence}");
        near(&what, got.lower, expected[0].as_f64().unwrap(), tolerance);
        near(&what, got.upper, expected[1].as_f64().unwrap(), tolerance);
    }
}

#[test]
fn roc_and_auc_match_scikit_learn() {
    for name in [
        "classif_0_n60",
        "classif_1_n200",
        "classif_2_n12",
        "classif_3_n8",
    ] {
        let (folder, case) = case(name);
        let tolerance = case["tolerance"]["abs"].as_f64().unwrap();
        let bytes = std::fs::read(folder.join("data.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (scores, labels) = (f64s(&tensors, "score"), i32s(&tensors, "label"));
        let of = |label: i32| -> Vec<f64> {
            let pairs = scores.iter().zip(&labels).filter(|&(_, &l)| l == label);
            pairs.map(|(&s, _)| s).collect()
        };
        let (pos, neg) = (of(1), of(0));

        let area = auc(&pos, &neg).unwrap();
        near(name, area, case["auroc"].as_f64().unwrap(), tolerance);

        let curve = roc(&pos, &neg).unwrap();
        let expected = ["roc.threshold", "roc.fpr", "roc.tpr"].map(|key| f64s(&tensors, key));
        assert_eq!(curve.points.len(), expected[0].len(), "{name}");
        for (i, point) in curve.points.iter().enumerate() {
            match point.threshold {
                None => assert_eq!((i, expected[0][i]), (0, 1e300)),
                Some(t) => near(name, t, expected[0][i], tolerance),
            }
            near(name, point.fpr, expected[1][i], tolerance);
            near(name, point.tpr, expected[2][i], tolerance);
        }
        let at_5_percent = case["tpr_at_fpr_0.05_no_interpolation"].as_f64().unwrap();
        near(name, curve.tpr_at_fpr(0.05), at_5_percent, tolerance);
    }
}
