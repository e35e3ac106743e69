//! Pages about repairs: what an earlier round left is told, and hostile text does nothing.
#![allow(clippy::unwrap_used)]

use depurate_report::{
    Attempt, Check, Environment, RepairReport, SCHEMA_VERSION, Subject, render_repair_html,
    render_repair_json,
};

const HOSTILE: &str = "</code><script>alert(1)</script>\" onload='x' {{ 7 * 7 }}";

fn check(text: &str, passed: bool) -> Check {
    Check {
        name: text.into(),
        meaning: text.into(),
        before: None,
        after: text.into(),
        allowed: text.into(),
        passed,
    }
}

fn report(text: &str, removed_again: Vec<Check>) -> RepairReport {
    RepairReport {
        schema_version: SCHEMA_VERSION.into(),
        suspect: Subject {
            path: text.into(),
            kind: text.into(),
            class_name: text.into(),
            parameters: 1,
            components: Vec::new(),
        },
        repaired: Some(text.into()),
        passed: true,
        why: text.into(),
        attempts: vec![Attempt {
            method: text.into(),
            passed: true,
            steps: 1350,
            evaluations: 9,
            left_out: 0,
            seconds: 2.0,
            checks: vec![check(text, true)],
            removed_again,
        }],
        evidence: Vec::new(),
        limits: vec![text.into()],
        seed: 0,
        command: text.into(),
        environment: Environment {
            tool: text.into(),
            version: text.into(),
            os: text.into(),
            arch: text.into(),
            cpu_features: Vec::new(),
            threads: 1,
            device: text.into(),
            started: text.into(),
            elapsed_s: 1.0,
        },
    }
}

#[test]
fn what_an_earlier_round_left_is_told_and_only_then() {
    let found = Check {
        meaning: "Diff-Cleanse with other seeds".into(),
        after: "suspicious (score 0.430)".into(),
        ..check("new scan", false)
    };
    let two = report("model", vec![found]);
    let page = render_repair_html(&two).unwrap();
    assert!(page.contains("Diff-Cleanse with other seeds: suspicious (score 0.430)"));
    let one = render_repair_html(&report("model", Vec::new())).unwrap();
    assert!(page.contains("After an earlier round") && !one.contains("After an earlier round"));
}

#[test]
fn json_reads_back_also_that_of_a_version_without_rounds() {
    let whole = report("model", vec![check("new scan", false)]);
    let json = render_repair_json(&whole).unwrap();
    assert_eq!(serde_json::from_str::<RepairReport>(&json).unwrap(), whole);
    let mut older: serde_json::Value = serde_json::from_str(&json).unwrap();
    let attempt = older["attempts"][0].as_object_mut().unwrap();
    attempt.remove("removed_again").unwrap();
    let read: RepairReport = serde_json::from_value(older).unwrap();
    assert_eq!(read, report("model", Vec::new()));
}

#[test]
fn hostile_text_stays_text() {
    let page = render_repair_html(&report(HOSTILE, vec![check(HOSTILE, false)])).unwrap();
    assert!(!page.contains("<script>alert"));
    assert!(!page.contains("onload='x'"));
    assert!(page.contains("{{ 7 * 7 }}"));
}
