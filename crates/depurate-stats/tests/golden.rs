//! Intervals, ROC curves and image metrics against SciPy, scikit-learn and torchmetrics.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use depurate_stats::{auc, clopper_pearson, frechet_distance, roc, ssim, wilson};
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
fn intervals_of_a_proportion_match_scipy() {
    let (_, case) = case("intervals_tvdist");
    let tolerance = case["tolerance"]["intervals"].as_f64().unwrap();
    let rows = case["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 75);
    for row in rows {
        let (k, n) = (row["k"].as_u64().unwrap(), row["n"].as_u64().unwrap());
        let confidence = row["conf"].as_f64().unwrap();
        for (name, got) in [
            ("clopper_pearson", clopper_pearson(k, n, confidence)),
            ("wilson", wilson(k, n, confidence)),
        ] {
            let (got, expected) = (got.unwrap(), &row[name]);
            let what = format!("{name}, {k} of {n} at {confidence}");
            near(&what, got.lower, expected[0].as_f64().unwrap(), tolerance);
            near(&what, got.upper, expected[1].as_f64().unwrap(), tolerance);
        }
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

#[test]
fn frechet_distance_matches_the_stable_route() {
    for name in ["frechet_0_n200_150_d16", "frechet_2_n20_25_d32_singular"] {
        let (folder, case) = case(name);
        let bytes = std::fs::read(folder.join("data.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let features = tensors.tensor("x").unwrap().shape()[1];
        let (x, y) = (f64s(&tensors, "x"), f64s(&tensors, "y"));
        let got = frechet_distance(&x, &y, features).unwrap();
        let expected = case["frechet_eigh_route"].as_f64().unwrap();
        near(name, got, expected, 1e-6 * expected);
        assert!(frechet_distance(&x, &x, features).unwrap() < 1e-9 * expected);
    }
}

#[test]
fn ssim_matches_torchmetrics_without_the_border() {
    for name in ["ssim_tv_1_noise", "ssim_tv_2_identical"] {
        let (folder, case) = case(name);
        let bytes = std::fs::read(folder.join("data.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let shape = tensors.tensor("a").unwrap().shape().to_vec();
        let f32s = |key: &str| -> Vec<f64> {
            let (chunks, _) = tensors.tensor(key).unwrap().data().as_chunks::<4>();
            chunks
                .iter()
                .map(|&c| f64::from(f32::from_le_bytes(c)))
                .collect()
        };
        let (a, b) = (f32s("a"), f32s("b"));
        let (height, width) = (shape[2], shape[3]);
        let planes = a.chunks(height * width).zip(b.chunks(height * width));
        let values: Vec<f64> = planes
            .map(|(a, b)| ssim(a, b, height, width).unwrap())
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        near(
            name,
            mean,
            case["ssim_cropped5_f64"].as_f64().unwrap(),
            1e-6,
        );
    }
}
