//! The report's schema, its renderers, and what hostile strings do to them: nothing.
#![allow(clippy::unwrap_used)]

use depurate_report::{
    Access, AlgorithmId, ColorChoice, Evidence, FINDINGS, FindingId, Histogram, Note, Png, Report,
    ReportError, ResponseCurve, Score, Series, Statistic, Table, Verdict, parse_json, render_html,
    render_json, render_text,
};

#[path = "../examples/sample/mod.rs"]
mod sample;

#[test]
fn text_of_a_backdoored_model() {
    let report = sample::backdoored().unwrap();
    let text = render_text(&report, ColorChoice::Never, Some("out/report.html"));
    insta::assert_snapshot!("backdoored_text", text);
}

#[test]
fn text_of_a_benign_model() {
    let report = sample::benign().unwrap();
    insta::assert_snapshot!(
        "benign_text",
        render_text(&report, ColorChoice::Never, None)
    );
}

#[test]
fn colours_only_when_asked_and_nothing_else_changes() {
    let report = sample::backdoored().unwrap();
    let plain = render_text(&report, ColorChoice::Never, None);
    let coloured = render_text(&report, ColorChoice::Always, None);
    assert!(!plain.contains('\x1b'));
    assert!(coloured.contains("\x1b[1;31mbackdoored\x1b[0m"));
    let mut stripped = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        stripped.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    stripped.push_str(rest);
    assert_eq!(stripped, plain);
}

/// The schema is an interface: whoever changes this snapshot changes what programs read.
#[test]
fn json_schema_version_1() {
    let mut report = sample::benign().unwrap();
    for evidence in &mut report.evidence {
        if let Evidence::ImageGrid(grid) = evidence {
            // the exact bytes of a PNG depend on the encoder's version
            grid.png.base64 = "(image)".into();
        }
    }
    insta::assert_snapshot!("benign_json", render_json(&report).unwrap());
}

#[test]
fn json_round_trip() {
    let report = sample::benign().unwrap();
    let json = render_json(&report).unwrap();
    assert!(parse_json(&json).unwrap() == report);

    // NaN is not equal to itself, so the diverged restart is compared as JSON
    let diverged = render_json(&sample::backdoored().unwrap()).unwrap();
    assert!(diverged.contains("\"objective\": null"));
    assert!(render_json(&parse_json(&diverged).unwrap()).unwrap() == diverged);
}

#[test]
fn unknown_versions_are_refused_and_newer_minor_ones_read() {
    let json = render_json(&sample::benign().unwrap()).unwrap();
    let versioned = |v: &str| {
        json.replacen(
            "\"schema_version\": \"1\"",
            &format!("\"schema_version\": \"{v}\", \"new_field\": 3"),
            1,
        )
    };
    assert!(parse_json(&versioned("1.4")).is_ok());
    for version in ["2", "2.0", "10", ""] {
        let error = parse_json(&versioned(version)).unwrap_err();
        assert!(
            matches!(error, ReportError::UnknownSchema { found, .. } if found == version),
            "{version}"
        );
    }
    assert!(matches!(
        parse_json("{\"schema_version\": 1}"),
        Err(ReportError::Json(_))
    ));
}

/// Replaces every string of a report that is not an id, a number in disguise or an image.
fn poison(json: &mut serde_json::Value, with: &str) {
    match json {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let fixed = [
                    "schema_version",
                    "verdict",
                    "severity",
                    "confidence",
                    "detector",
                    "type",
                ];
                let keeps = fixed.contains(&key.as_str()) || (key == "id" && is_finding_id(value));
                if !keeps {
                    poison(value, with);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| poison(item, with)),
        serde_json::Value::String(text) => *text = with.to_owned(),
        _ => {}
    }
}

fn is_finding_id(value: &serde_json::Value) -> bool {
    value
        .as_str()
        .is_some_and(|id| id.parse::<FindingId>().is_ok())
}

fn poisoned(with: &str) -> Report {
    let report = sample::backdoored().unwrap();
    let mut json = serde_json::to_value(&report).unwrap();
    poison(&mut json, with);
    parse_json(&json.to_string()).unwrap()
}

/// Every string, in every place, images included.
#[test]
fn html_escapes_hostile_strings() {
    let hostile = "</title></style></code>\"'><script>alert(1)</script>{{ 7 * 7 }}<img src=x>";
    let html = render_html(&poisoned(hostile)).unwrap();
    assert!(!html.contains("<script"));
    assert!(!html.contains("<img src=x"));
    assert!(!html.contains("\"'>"));
    assert!(html.contains("&lt;script&gt;alert(1)"));
    assert!(html.contains("{{ 7 * 7 }}"), "templates in data are text");
    // as many tags as in a harmless report: nothing opened, nothing closed
    let harmless = render_html(&poisoned("x")).unwrap();
    assert_eq!(html.matches('<').count(), harmless.matches('<').count());
    assert_eq!(html.matches('>').count(), harmless.matches('>').count());
}

#[test]
fn text_escapes_what_drives_a_terminal() {
    let report = poisoned("a\x1b[2Jb\x07\u{202e}c\nd");
    let text = render_text(&report, ColorChoice::Never, None);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    assert!(!text.contains('\u{202e}'));
    assert!(text.contains("a\\u{1b}[2Jb"));
}

#[test]
fn html_loads_nothing_and_runs_nothing() {
    for report in [sample::backdoored().unwrap(), sample::benign().unwrap()] {
        let html = render_html(&report).unwrap();
        for load in [
            "http:",
            "https:",
            "<script",
            "<link",
            "<iframe",
            "<object",
            "@import",
            "url(",
            "<base",
            "javascript:",
            "onload",
            "onclick",
            "onerror",
            "=\"//",
        ] {
            assert!(!html.contains(load), "{load}");
        }
        assert!(html.contains("default-src 'none'; img-src data:"));
        for source in html.split("src=\"").skip(1) {
            assert!(source.starts_with("data:image/png;base64,"));
        }
        assert!(html.len() < 5 << 20);
    }
}

#[test]
fn html_keeps_the_order_and_hides_generated_targets() {
    let report = sample::backdoored().unwrap();
    let html = render_html(&report).unwrap();
    let order = [
        "<h1>backdoored</h1>",
        "What was tested, and what was not",
        "<h2>Evidence</h2>",
        "Reconstructed trigger",
        "Repeat it",
        "Subject and environment",
        "Raw data",
    ];
    let places: Vec<usize> = order.iter().map(|part| html.find(part).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(html.matches("class=\"veil\"").count(), 1);
    assert!(html.contains("Stated false-positive rate <strong>4.0 %</strong>"));
    // each image is in the file once: the raw data leaves them out
    let Evidence::InvertedTrigger(trigger) = &report.findings[0].evidence[0] else {
        panic!("the sample begins with the trigger");
    };
    let image = &trigger.magnified.base64;
    assert_eq!(html.matches(&image[..64.min(image.len())]).count(), 1);
}

/// Reports come from files, too: plots of absurd numbers are left out or clamped, never a panic.
#[test]
fn absurd_numbers_render() {
    let absurd = [f64::NAN, f64::MAX, -f64::MAX, 0.0, f64::MIN_POSITIVE];
    let mut report = sample::benign().unwrap();
    report.evidence.clear();
    for value in absurd {
        for population in [vec![], vec![value], absurd.to_vec(), vec![1.0, 1.0]] {
            report.evidence.push(
                Statistic {
                    name: "s".into(),
                    meaning: "m".into(),
                    value,
                    threshold: None,
                    benign: population.clone(),
                    controls: population.clone(),
                }
                .into(),
            );
            report.evidence.push(
                ResponseCurve {
                    title: "t".into(),
                    caption: "c".into(),
                    x_label: "x".into(),
                    y_label: "y".into(),
                    series: vec![Series {
                        label: "l".into(),
                        points: population.iter().map(|&v| (v, value)).collect(),
                    }],
                    band: None,
                }
                .into(),
            );
        }
    }
    let ragged = Table {
        title: "ragged".into(),
        columns: vec!["a".into()],
        rows: vec![vec![], vec!["1".into(), "2".into()]],
    };
    report.evidence.push(ragged.into());
    let html = render_html(&report).unwrap();
    assert!(!html.contains("NaN") && !html.contains("\"inf"));
}

#[test]
fn an_empty_report_renders() {
    let mut report = sample::benign().unwrap();
    report.verdict = Verdict::Inconclusive;
    report.decisions.clear();
    report.evidence.clear();
    report.tested.clear();
    report.not_tested.clear();
    report.skipped.clear();
    report.subject.components.clear();
    report.calibration = None;
    report.interrupted = true;
    let html = render_html(&report).unwrap();
    assert!(html.contains("The scan was interrupted"));
    assert!(!html.contains("<h2>Evidence</h2>"));
    let text = render_text(&report, ColorChoice::Never, None);
    assert!(text.starts_with("inconclusive: "));
    assert!(text.contains("interrupted"));
}

#[test]
fn a_rate_that_does_not_hold_is_said_aloud() {
    let mut report = sample::benign().unwrap();
    report.decisions[0].threshold.covers = false;
    report.decisions[0].threshold.note = Some("trained on 64 px".into());
    let html = render_html(&report).unwrap();
    assert!(html.contains("the rate is not assured here"));
    let text = render_text(&report, ColorChoice::Never, None);
    assert!(text.contains("not covered") && text.contains("trained on 64 px"));
}

#[test]
fn verdicts_are_ordered_and_inconclusive_never_fails_a_build() {
    use Verdict::{Backdoored, Inconclusive, NoBackdoorFound, Suspicious};
    assert!(NoBackdoorFound < Inconclusive && Inconclusive < Suspicious);
    assert!(Backdoored.reaches(Suspicious) && Backdoored.reaches(Backdoored));
    assert!(!Suspicious.reaches(Backdoored) && !Inconclusive.reaches(NoBackdoorFound));
    assert_eq!(
        serde_json::to_string(&NoBackdoorFound).unwrap(),
        "\"no_backdoor_found\""
    );
}

#[test]
fn ids_are_checked() {
    for good in ["terd", "daa-s", "t2i-shield2"] {
        assert_eq!(good.parse::<AlgorithmId>().unwrap().to_string(), good);
    }
    for bad in ["", "Terd", "-a", "a-", "a--b", "2t", "a_b", "a b", "é"] {
        assert!(bad.parse::<AlgorithmId>().is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<AlgorithmId>("\"<b>\"").is_err());
    assert_eq!(
        "DPR101".parse::<FindingId>().unwrap(),
        FindingId::NOISE_TRIGGER
    );
    for bad in ["DPR1", "dpr101", "DPR1012", "DPR+10", "DPR"] {
        assert!(bad.parse::<FindingId>().is_err(), "{bad}");
    }
}

#[test]
fn the_table_of_findings_is_sorted_and_without_doubles() {
    assert!(FINDINGS.is_sorted_by(|a, b| a.id < b.id));
    for info in FINDINGS {
        assert_eq!(info.id.info().unwrap(), info);
        assert!(info.title.starts_with(|c: char| c.is_lowercase()));
    }
}

#[test]
fn access_is_a_set_with_names() {
    let needs = Access::SCORE_FN | Access::GRADIENTS;
    assert!(needs.contains(Access::GRADIENTS) && !needs.contains(Access::WEIGHTS));
    let missing = needs.missing_from(Access::SCORE_FN | Access::WEIGHTS);
    assert_eq!(missing.to_string(), "gradients");
    assert_eq!(
        serde_json::to_string(&needs).unwrap(),
        "[\"score_fn\",\"gradients\"]"
    );
    assert!(Access::NONE.is_empty() && needs.missing_from(needs).is_empty());
}

#[test]
fn scores_are_finite() {
    assert!(Score::new(f64::INFINITY).is_err());
    assert_eq!(Score::new(1.5).unwrap().value(), 1.5);
    assert!(serde_json::from_str::<Score>("null").is_err());
}

#[test]
fn png_reads_its_own_size_and_refuses_other_bytes() {
    let Evidence::ImageGrid(grid) = &sample::benign().unwrap().evidence[1] else {
        panic!("the sample's second piece is a grid");
    };
    assert_eq!((grid.png.width, grid.png.height), (115, 115));
    let bytes = grid.png.to_bytes().unwrap();
    assert_eq!(Png::from_bytes(&bytes).unwrap(), grid.png);
    for wrong in [&b""[..], b"GIF89a", &bytes[..20], &[0; 64]] {
        assert!(matches!(
            Png::from_bytes(wrong),
            Err(ReportError::BadPng { .. })
        ));
    }
}

#[test]
fn histograms_count_every_finite_value_once() {
    let values = [0.0, 0.1, 0.5, 0.99, 1.0, f64::NAN, f64::INFINITY];
    let histogram = Histogram::of(&values, 4);
    assert_eq!(histogram.edges, [0.0, 0.25, 0.5, 0.75, 1.0]);
    assert_eq!(histogram.counts, [2, 0, 1, 2]);
    assert_eq!(Histogram::of(&[2.0; 3], 5).counts.iter().sum::<u64>(), 3);
    assert!(Histogram::of(&[f64::NAN], 5).counts.is_empty());
}

#[test]
fn evidence_is_tagged() {
    let note: Evidence = Note { text: "t".into() }.into();
    assert_eq!(
        serde_json::to_string(&note).unwrap(),
        r#"{"type":"note","text":"t"}"#
    );
}
