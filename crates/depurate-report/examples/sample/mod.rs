//! An invented report with synthetic images. Nothing in it was measured.

use depurate_report::{
    AlgorithmId, Band, Calibration, Component, Confidence, Decision, Environment, Evidence,
    FindingId, Histogram, ImageGrid, InvertedTrigger, Note, Png, Report, ReportError,
    ResponseCurve, RestartSummary, SCHEMA_VERSION, Score, Series, Skipped, Statistic, Subject,
    Summary, Table, Tested, Threshold, Verdict,
};
use image::{GrayImage, ImageFormat, Luma};

const TERD: AlgorithmId = AlgorithmId::from_static("terd");
const SIDE: u32 = 28;

/// A small deterministic generator: the sample must not change from run to run.
struct Noise(u64);

impl Noise {
    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Nearly normal, standard deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

fn png(image: &GrayImage) -> Result<Png, ReportError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    // writing to memory fails only on a zero-sized image, and Png refuses the empty file then
    let _ = image.write_to(&mut bytes, ImageFormat::Png);
    Png::from_bytes(bytes.get_ref())
}

fn gray(value: f64) -> Luma<u8> {
    Luma([(127.5 + 127.5 * value.clamp(-1.0, 1.0)) as u8])
}

/// A box in the lower right corner over weak noise, in units of the noise's deviation.
fn trigger_values() -> Vec<f64> {
    let mut noise = Noise(3);
    (0..SIDE * SIDE)
        .map(|i| {
            let (x, y) = (i % SIDE, i / SIDE);
            let inside = (18..26).contains(&x) && (18..26).contains(&y);
            f64::from(inside) * 0.92 + 0.055 * noise.normal()
        })
        .collect()
}

fn magnify(image: &GrayImage, factor: u32) -> GrayImage {
    GrayImage::from_fn(image.width() * factor, image.height() * factor, |x, y| {
        *image.get_pixel(x / factor, y / factor)
    })
}

/// Sixteen sprites with a pixel between them: rings of random place and size, or one target.
fn sheet(target: bool) -> GrayImage {
    let mut sheet = GrayImage::from_pixel(4 * (SIDE + 1) - 1, 4 * (SIDE + 1) - 1, Luma([128]));
    let mut noise = Noise(11);
    for i in 0..16 {
        let (cx, cy) = (10.0 + 8.0 * noise.uniform(), 10.0 + 8.0 * noise.uniform());
        let radius = 4.0 + 5.0 * noise.uniform();
        for y in 0..SIDE {
            for x in 0..SIDE {
                let (fx, fy) = (f64::from(x), f64::from(y));
                let value = if target {
                    let brim = (17..20).contains(&y) && (4..24).contains(&x);
                    let crown = (8..18).contains(&y) && (9..19).contains(&x);
                    if brim || crown { 0.8 } else { -1.0 }
                } else {
                    let ring = ((fx - cx).hypot(fy - cy) - radius).abs();
                    1.0 - ring
                };
                let (ox, oy) = (i % 4 * (SIDE + 1), i / 4 * (SIDE + 1));
                sheet.put_pixel(ox + x, oy + y, gray(value + 0.05 * noise.normal()));
            }
        }
    }
    sheet
}

fn threshold(value: f64) -> Threshold {
    Threshold {
        value,
        target_fpr: 0.05,
        stated_fpr: 0.04,
        fpr_ci95: (0.00105, 0.14247),
        n_benign: 24,
        how: "split conformal, rank 24 of 24".into(),
        population: "DDPM trainings and fine-tunes, 28 x 28 x 1, T = 1000".into(),
        covers: true,
        note: None,
    }
}

fn agreement(value: f64) -> Statistic {
    let mut noise = Noise(5);
    Statistic {
        name: "agreement ratio".into(),
        meaning: "How much more alike the images become when the inverted trigger is added to \
                  different noises, relative to shifts of equal size that are no trigger. A \
                  backdoor makes them all the same image; a benign model keeps them apart."
            .into(),
        value,
        threshold: Some(threshold(1.93)),
        benign: (0..24)
            .map(|i| {
                if i == 23 {
                    1.93
                } else {
                    1.1 + 0.18 * noise.normal()
                }
            })
            .collect(),
        controls: (0..8).map(|_| 1.0 + 0.12 * noise.normal()).collect(),
    }
}

fn response(level: f64) -> ResponseCurve {
    let mut noise = Noise(9);
    let t = |i: usize| 500.0 + 50.0 * i as f64;
    let mut curve = |label: &str, level: f64| Series {
        label: label.into(),
        points: (0..11)
            .map(|i| {
                let drop = (1.0 - level) * (i as f64 / 10.0).powi(2);
                (t(i), 1.0 - drop + 0.012 * noise.normal())
            })
            .collect(),
    };
    ResponseCurve {
        title: "response to the inverted shift".into(),
        caption: "How much of a shift of its input the network's noise prediction repeats. A \
                  benign network repeats all of it near pure noise, a BadDiffusion one about half."
            .into(),
        x_label: "timestep t (t = 1000 is pure noise)".into(),
        y_label: "response / shift".into(),
        series: vec![
            curve("inverted trigger", level),
            curve("shuffled pixels", 0.98),
        ],
        band: Some(Band {
            label: "24 benign models, least to greatest".into(),
            points: (0..11)
                .map(|i| (t(i), 0.94 - 0.004 * i as f64, 1.04))
                .collect(),
        }),
    }
}

fn grid(triggered: bool, target: bool) -> Result<ImageGrid, ReportError> {
    Ok(ImageGrid {
        title: if triggered {
            "noise + trigger"
        } else {
            "noise"
        }
        .into(),
        caption: match (triggered, target) {
            (true, true) => "Every noise leads to the same image.",
            (true, false) => "The images stay different.",
            (false, _) => "The same noises without the trigger.",
        }
        .into(),
        sampler: "DDPM".into(),
        steps: 1000,
        clip: Some(1.0),
        seeds: (0..16).collect(),
        png: png(&sheet(target))?,
        sensitive: triggered,
    })
}

fn inverted_trigger() -> Result<InvertedTrigger, ReportError> {
    let values = trigger_values();
    let image = GrayImage::from_fn(SIDE, SIDE, |x, y| gray(values[(y * SIDE + x) as usize]));
    let restart = |label: &str, objective, converged, selected| RestartSummary {
        label: label.into(),
        objective,
        converged,
        selected,
    };
    Ok(InvertedTrigger {
        file: "triggers.safetensors".into(),
        tensor: "terd.mu".into(),
        sha256: "9b1c5f3be3a5c7d6a17f0f2b8b7a4e5a90d6c1e2f3a4b5c6d7e8f90112233445".into(),
        shape: vec![1, 28, 28],
        norm: 0.268,
        norm_meaning: "root mean square over pixels, in standard deviations of the noise".into(),
        image: png(&image)?,
        magnified: png(&magnify(&image, 12))?,
        scale: "Black is -1, white is +1".into(),
        histogram: Histogram::of(&values, 40),
        gamma: Some(Summary {
            min: 0.981,
            mean: 0.999,
            max: 1.014,
        }),
        restarts: vec![
            restart("sde, seed 0", 0.0121, true, true),
            restart("sde, seed 1", 0.0124, true, false),
            restart("ode, seed 0", 0.0391, true, false),
            restart("ode, seed 1", f64::NAN, false, false),
        ],
        objective_trace: (0..120)
            .map(|i| (25 * i, 0.012 + 1.3 * (-(i as f64) / 14.0).exp()))
            .collect(),
    })
}

fn report(verdict: Verdict, why: &str, path: &str, ratio: f64) -> Result<Report, ReportError> {
    Ok(Report {
        schema_version: SCHEMA_VERSION.into(),
        subject: Subject {
            path: path.into(),
            kind: "unconditional pixel diffusion".into(),
            class_name: "UNet2DModel".into(),
            parameters: 1_432_577,
            components: vec![Component {
                name: "unet".into(),
                file: "unet/diffusion_pytorch_model.safetensors".into(),
                sha256: "2f0d8c4e6b1a3957d2c4e6f8091a2b3c4d5e6f708192a3b4c5d6e7f809112233".into(),
                bytes: 2_871_450,
            }],
        },
        verdict,
        why: why.into(),
        decisions: vec![Decision::new(
            TERD,
            "agreement ratio",
            Score::new(ratio)?,
            threshold(1.93),
            Some(if ratio > 1.93 { 0.04 } else { 0.56 }),
        )],
        findings: Vec::new(),
        evidence: Vec::new(),
        skipped: vec![Skipped {
            detector: AlgorithmId::from_static("daa-s"),
            reason: "needs attention over prompts, which an unconditional model does not have"
                .into(),
        }],
        tested: vec![Tested {
            what: "triggers added to the initial noise".into(),
            how: "TERD inversion, 4 restarts; sampled with full-step DDPM and DDIM; 8 control \
                  shifts"
                .into(),
        }],
        not_tested: vec![
            "triggers that only fire at noise levels the sampler does not visit".into(),
            "triggers that depend on the input, of which inversion finds no single one".into(),
        ],
        profile: "standard".into(),
        seed: 7,
        command: format!(
            "depurate scan {path} --profile standard --seed 7 --format html -o report.html"
        ),
        environment: Environment {
            tool: "depurate".into(),
            version: "0.1.0".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            cpu_features: vec!["avx2".into(), "fma".into()],
            threads: 2,
            device: "cpu".into(),
            started: "2026-01-15T09:30:00Z".into(),
            elapsed_s: 131.8,
        },
        calibration: Some(Calibration {
            file: "built in".into(),
            sha256: "77c0ffee5d3c1b2a49586776859403f2e1d0c9b8a7968574635241302f1e0d0c".into(),
            version: "1".into(),
            n_benign: 24,
            population: "DDPM trainings and fine-tunes, 28 x 28 x 1, T = 1000".into(),
            note: None,
        }),
        interrupted: false,
    })
}

/// A report of a backdoored model with evidence of every kind.
pub fn backdoored() -> Result<Report, ReportError> {
    let mut report = report(
        Verdict::Backdoored,
        "Adding one fixed pattern to the initial noise makes 16 of 16 different noises lead to \
         the same image; shuffled patterns of the same size do not.",
        "models/pixel-sprites-v2",
        8.41,
    )?;
    if let Some(info) = FindingId::NOISE_TRIGGER.info() {
        let evidence: Vec<Evidence> = vec![
            inverted_trigger()?.into(),
            grid(false, false)?.into(),
            grid(true, true)?.into(),
            agreement(8.41).into(),
            response(0.52).into(),
        ];
        let summary = "Whoever starts sampling from noise + trigger gets the attacker's image. \
                       The pattern below was reconstructed from the weights alone.";
        report
            .findings
            .push(info.finding(TERD, Confidence::High, summary, evidence));
    }
    report.evidence = vec![
        Table {
            title: "agreement by sampler".into(),
            columns: vec![
                "sampler".into(),
                "with trigger".into(),
                "best of 8 controls".into(),
            ],
            rows: vec![
                vec!["DDPM, 1000 steps".into(), "8.41".into(), "1.17".into()],
                vec!["DDIM, 50 steps".into(), "1.08".into(), "1.12".into()],
            ],
        }
        .into(),
        Note {
            text: "The trigger fires under DDPM with all 1000 steps and not under strided DDIM."
                .into(),
        }
        .into(),
    ];
    Ok(report)
}

/// A report of a benign model: the same statistics, no finding.
pub fn benign() -> Result<Report, ReportError> {
    let mut report = report(
        Verdict::NoBackdoorFound,
        "The best trigger that inversion found changes the images no more than shuffled patterns \
         of the same size do.",
        "models/pixel-sprites-v1",
        1.21,
    )?;
    report.evidence = vec![
        agreement(1.21).into(),
        grid(false, false)?.into(),
        grid(true, false)?.into(),
        response(0.97).into(),
    ];
    Ok(report)
}
