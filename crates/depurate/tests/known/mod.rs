//! A detector whose answer is known, and scans with it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use depurate::{
    Detector, DetectorName, Profile,
    cache::Cache,
    device::Device,
    scan::{Scan, ScanSettings, Watch, scan},
};
use depurate_checkpoint::{Layers, Limits};
use depurate_defense::{
    CancelToken, Cx, DefenseError, Silent,
    detect::model_level::{Comparison, Control, Curve, Inspection, ModelDetector, Samples},
    invert::{Inversion, Restart, response_fixed_point::FixedPoint},
};
use depurate_diffusion::{
    Denoiser, Pipeline,
    firing::Firing,
    sampler::{Clip, SamplerSettings, Steps},
};
use serde_json::json;

use crate::support::tiny_pipeline;

/// Stages of the detector.
pub const STAGES: u64 = 3;

/// Gives `score` after three stages; in stage `stop_in` it asks for a stop itself.
pub struct Known {
    /// What it gives.
    pub score: f64,
    /// Where it asks for a stop.
    pub stop_in: Option<u64>,
    /// Stages computed and not taken from a journal.
    pub computed: Arc<AtomicU64>,
}

impl ModelDetector for Known {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        let shape = model.sample_shape();
        let mut last = None;
        for stage in 0..STAGES {
            let found: FixedPoint = cx.stage(&format!("candidate-{stage}"), || {
                if self.stop_in == Some(stage) {
                    cx.cancel.cancel();
                }
                cx.step()?;
                self.computed.fetch_add(1, Relaxed);
                Ok(FixedPoint {
                    shift: (0..shape.len())
                        .map(|i| (i % 7) as f32 / 7.0 - 0.4)
                        .collect(),
                    residual: 1.0 / (stage + 1) as f64,
                    trace: vec![1.0; 1000],
                    rms: vec![0.3],
                    converged: true,
                })
            })?;
            last = Some(found);
        }
        let found = last.unwrap();
        let steps = Steps {
            count: 10,
            first: 999,
            last: 0,
        };
        let sampler = SamplerSettings::Ddpm {
            steps,
            variance: model.scheduler().variance_type,
            clip: Clip::None,
        };
        let samples = [
            "noise",
            "noise + inverted trigger",
            "noise + control: permuted pixels",
        ]
        .map(|label| Samples {
            label: label.into(),
            sampler: sampler.clone(),
            shape,
            count: 4,
            pixels: vec![0.25; 4 * shape.len()],
        });
        Ok(Inspection {
            score: self.score,
            score_meaning: "a number that was made up".into(),
            inversion: Inversion {
                shape,
                shift: found.shift,
                gamma: Some(vec![1.0; shape.len()]),
                firing: Firing::Stochastic,
                objective: found.residual,
                objective_meaning: "a made-up objective".into(),
                trace: found.trace.iter().copied().enumerate().collect(),
                converged: true,
                restarts: vec![Restart {
                    start: "own sample".into(),
                    objective: 0.5,
                    norm: 2.0,
                    converged: true,
                    selected: true,
                }],
            },
            target: vec![-0.5; shape.len()],
            comparisons: vec![Comparison {
                name: "agreement".into(),
                meaning: "of images".into(),
                value: 4.0,
                suspicion: 0.6,
                controls: vec![Control {
                    label: "permuted pixels".into(),
                    value: 1.0,
                }],
            }],
            curves: vec![Curve {
                title: "response".into(),
                x_label: "t".into(),
                y_label: "answer".into(),
                series: vec![("inverted trigger".into(), vec![(0.0, 1.0), (999.0, 0.5)])],
            }],
            samples: samples.to_vec(),
            evaluations: 120,
            tested: vec!["a fixed shift of the initial noise".into()],
            not_tested: vec!["a scaled noise".into()],
        })
    }
}

/// A detector with a count of the stages that it computed.
pub fn known(score: f64, stop_in: Option<u64>) -> (Detector, Arc<AtomicU64>) {
    let computed = Arc::default();
    let run = Box::new(Known {
        score,
        stop_in,
        computed: Arc::clone(&computed),
    });
    let info = DetectorName::default().build(Profile::Quick).unwrap().info;
    (
        Detector {
            info,
            least_effect: 0.3,
            scoring: json!({"rate": 0.1}),
            params: json!({"rate": 0.1, "images": 4}),
            run,
        },
        computed,
    )
}

pub fn settings(report_dir: &Path) -> ScanSettings {
    ScanSettings {
        beside: Vec::new(),
        profile: Profile::Quick,
        seed: 7,
        budget: None,
        resume: true,
        target_fpr: 0.05,
        calibration: None,
        base: None,
        layers: Layers::default(),
        device: Device::Cpu,
        limits: Limits::default(),
        report_dir: Some(report_dir.to_owned()),
        command: "depurate scan tiny".into(),
    }
}

pub fn run(detector: &Detector, settings: &ScanSettings, cache: &Cache) -> Scan {
    let cancel = CancelToken::default();
    scan(
        &tiny_pipeline(),
        settings,
        detector,
        cache,
        Watch {
            cancel: &cancel,
            progress: &Silent,
        },
    )
    .unwrap()
}
