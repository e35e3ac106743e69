//! A checkpoint as diffusers writes it today, and the same one with the names and configuration of its first release.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use depurate_checkpoint::{
    AnomalyKind, Checkpoint, CheckpointError, CheckpointKind, Dtype, Limits, UNET_STEM, Weights,
    inspect, plan, rename_deprecated_attention,
};

fn golden(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/unet2d/c2_old_names_cifar_mini")
        .join(part)
}

fn open(part: &str) -> Weights {
    Weights::open_dir(&golden(part), UNET_STEM, None, &Limits::default()).unwrap()
}

/// Names and shapes of the current file stand for the network.
fn expected() -> Vec<(String, Vec<usize>)> {
    open("pipeline/unet")
        .infos()
        .map(|i| (i.name.clone(), i.shape.clone()))
        .collect()
}

#[test]
fn both_name_styles_plan_to_the_same_set_with_the_same_values() {
    let (new, old) = (open("pipeline/unet"), open("unet_deprecated_names"));
    assert!(
        old.infos()
            .any(|i| i.name.ends_with("attentions.0.proj_attn.weight"))
    );
    let of_new = plan(&expected(), &new, &rename_deprecated_attention);
    let of_old = plan(&expected(), &old, &rename_deprecated_attention);
    let of_old = of_old
        .into_result(&golden("unet_deprecated_names"))
        .unwrap();
    assert!(of_new.is_complete());
    assert_eq!(of_new.applied, of_old.applied);
    assert_eq!(of_new.applied.len(), expected().len());
    for name in &of_new.applied {
        let new = new.read_f32(of_new.source(name).unwrap()).unwrap();
        let old = old.read_f32(of_old.source(name).unwrap()).unwrap();
        assert_eq!(new, old, "{name}");
    }
}

#[test]
fn without_renaming_the_old_names_are_missing_and_unexpected() {
    let old = open("unet_deprecated_names");
    let report = plan(&expected(), &old, &|_| None);
    assert_eq!(report.missing.len(), report.unexpected.len());
    assert!(report.missing.len() >= 8);
    let error = report
        .into_result(&golden("unet_deprecated_names"))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("to_out.0.bias") && text.contains("missing"),
        "{text}"
    );
    assert!(
        text.contains("proj_attn.bias") && text.contains("unexpected"),
        "{text}"
    );
}

#[test]
fn a_changed_shape_is_named_with_both_shapes() {
    let mut wanted = expected();
    let conv_in = wanted
        .iter_mut()
        .find(|(name, _)| name == "conv_in.weight")
        .unwrap();
    conv_in.1 = vec![8, 1, 3, 3];
    let report = plan(&wanted, &open("pipeline/unet"), &|_| None);
    let row = (
        "conv_in.weight".to_owned(),
        vec![8, 1, 3, 3],
        vec![8, 3, 3, 3],
    );
    assert_eq!(report.mis_shaped, [row]);
    assert!(report.missing.is_empty() && report.unexpected.is_empty());
    let text = report.to_string();
    assert!(
        text.contains("conv_in.weight wants [8, 1, 3, 3] and has [8, 3, 3, 3]"),
        "{text}"
    );
}

#[test]
fn pipeline_and_bare_unet_open() {
    let limits = Limits::default();
    let pipeline = Checkpoint::open(&golden("pipeline"), &limits).unwrap();
    assert_eq!(pipeline.pipeline_class(), Some("DDPMPipeline"));
    assert_eq!(pipeline.unet_class(), Some("UNet2DModel"));
    assert!(!pipeline.is_text_conditional());
    assert_eq!(
        pipeline.scheduler_config().unwrap()["num_train_timesteps"],
        1000
    );
    assert_eq!(pipeline.unet_config()["downsample_padding"], 0);
    assert_eq!(
        pipeline.unet_weights(&limits).unwrap().infos().count(),
        expected().len()
    );

    let bare = Checkpoint::open(&golden("unet_deprecated_names"), &limits).unwrap();
    assert_eq!(bare.kind, CheckpointKind::BareUnet);
    assert_eq!(bare.unet_class(), Some("UNet2DModel"));
    assert!(bare.scheduler_config().is_none());
}

#[test]
fn inspection_lists_components_hashes_and_counts() {
    let inspection = inspect(&golden("pipeline"), &Limits::default(), None).unwrap();
    let names: Vec<_> = inspection
        .components
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["scheduler", "unet"]);
    let unet = &inspection.components[1];
    let weights = unet.weights.as_ref().unwrap();
    let parameters: usize = expected()
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    assert_eq!(weights.parameters, parameters as u64);
    assert_eq!(inspection.parameters, parameters as u64);
    assert_eq!(
        weights.dtypes.keys().copied().collect::<BTreeSet<_>>(),
        [Dtype::F32].into()
    );
    assert!(
        !weights
            .anomalies
            .iter()
            .any(|a| a.kinds.contains(&AnomalyKind::NotFinite))
    );
    assert_eq!(unet.files.len(), 2);
    assert!(
        unet.files
            .iter()
            .all(|f| f.sha256.len() == 64 && f.bytes > 0)
    );
    assert!(inspection.stray.pickles.is_empty() && inspection.stray.complete);
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(
        json["components"][1]["weights"]["dtypes"]["F32"],
        expected().len()
    );
}

#[test]
fn an_unknown_tensor_is_an_error_that_names_it() {
    let error = open("pipeline/unet")
        .read_f32("nowhere.weight")
        .unwrap_err();
    assert!(
        matches!(&error, CheckpointError::UnknownTensor { tensor, .. } if tensor == "nowhere.weight")
    );
}

#[test]
fn names_outside_attentions_are_not_renamed() {
    let renamed = |name| rename_deprecated_attention(name);
    assert_eq!(
        renamed("mid_block.attentions.0.proj_attn.bias").as_deref(),
        Some("mid_block.attentions.0.to_out.0.bias")
    );
    assert_eq!(
        renamed("up_blocks.2.attentions.10.query.weight").as_deref(),
        Some("up_blocks.2.attentions.10.to_q.weight")
    );
    assert_eq!(renamed("mid_block.resnets.0.key.weight"), None);
    assert_eq!(renamed("mid_block.attentions.x.key.weight"), None);
    assert_eq!(renamed("mid_block.attentions.0.group_norm.weight"), None);
    assert_eq!(renamed("mid_block.attentions.0.key.extra.weight"), None);
}
