//! The report as text for a terminal.

use std::fmt::{self, Write};

use crate::number::{bytes, count, duration, number, percent, percent_range};
use crate::{Decision, Evidence, Finding, Report, Severity, Verdict};

/// May the text carry terminal colours?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColorChoice {
    /// Plain text.
    #[default]
    Never,
    /// With ANSI colours.
    Always,
}

/// The report in a screenful of text: verdict, why, error rates, findings, what was not tested.
///
/// `report_path` is where the full report lies, if it was written. Control characters in names
/// and paths are escaped: a model's path cannot drive the terminal.
#[must_use]
pub fn render_text(report: &Report, color: ColorChoice, report_path: Option<&str>) -> String {
    let mut out = String::new();
    // writing to a String does not fail
    let _ = Terminal {
        out: &mut out,
        color,
    }
    .report(report, report_path);
    out
}

/// Lines on the way to a terminal.
struct Terminal<'a> {
    out: &'a mut String,
    color: ColorChoice,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";
const CYAN: &str = "1;36";

impl Terminal<'_> {
    fn report(&mut self, report: &Report, report_path: Option<&str>) -> fmt::Result {
        let subject = &report.subject;
        let style = verdict_style(report.verdict);
        let verdict = self.paint(style, report.verdict.phrase());
        writeln!(self.out, "{verdict}: {}", clean(&subject.path))?;
        self.wrapped("  ", &report.why)?;
        if report.interrupted {
            let notice = self.paint(YELLOW, "interrupted");
            writeln!(
                self.out,
                "  {notice}: only what is listed as tested was done"
            )?;
        }
        let size: u64 = subject.components.iter().map(|c| c.bytes).sum();
        writeln!(
            self.out,
            "  {}, {}, {} parameters, {}",
            clean(&subject.kind),
            clean(&subject.class_name),
            count(subject.parameters),
            bytes(size)
        )?;

        for decision in &report.decisions {
            self.decision(decision)?;
        }
        for finding in &report.findings {
            self.finding(finding)?;
        }

        self.heading("tested", !report.tested.is_empty())?;
        for tested in &report.tested {
            self.item(&format!("{}: {}", tested.what, tested.how))?;
        }
        self.heading("not tested", !report.not_tested.is_empty())?;
        for untested in &report.not_tested {
            self.item(untested)?;
        }
        self.heading("skipped", !report.skipped.is_empty())?;
        for skipped in &report.skipped {
            self.item(&format!("{}: {}", skipped.detector, skipped.reason))?;
        }

        writeln!(self.out)?;
        let env = &report.environment;
        let footer = format!(
            "{} {}, profile {}, seed {}, {} on {}",
            env.tool,
            env.version,
            report.profile,
            report.seed,
            duration(env.elapsed_s),
            env.device
        );
        let footer = self.paint(DIM, &clean(&footer));
        writeln!(self.out, "{footer}")?;
        if let Some(path) = report_path {
            let path = self.paint(BOLD, &clean(path));
            writeln!(self.out, "report: {path}")?;
        }
        Ok(())
    }

    fn decision(&mut self, decision: &Decision) -> fmt::Result {
        let threshold = &decision.threshold;
        let (relation, style) = if decision.flagged {
            ("above", RED)
        } else {
            ("not above", GREEN)
        };
        let score = self.paint(style, &number(decision.score.value()));
        let detector = self.paint(BOLD, decision.detector.as_str());
        writeln!(
            self.out,
            "\n{detector}: {} {score}, {relation} the threshold {}",
            clean(&decision.statistic),
            number(threshold.value)
        )?;
        self.wrapped(
            "  ",
            &format!(
                "stated false-positive rate {} (exact 95 % interval {}), from {} benign: {}",
                percent(threshold.stated_fpr),
                percent_range(threshold.fpr_ci95),
                threshold.n_benign,
                threshold.population
            ),
        )?;
        if let Some(p) = decision.p_value {
            writeln!(
                self.out,
                "  p = {}, the least possible with {} benign is {}",
                number(p),
                threshold.n_benign,
                number(1.0 / (threshold.n_benign as f64 + 1.0))
            )?;
        }
        if !threshold.covers {
            let warning = self.paint(YELLOW, "not covered");
            writeln!(
                self.out,
                "  {warning}: the calibration holds no models of this kind, so the rate is not assured"
            )?;
        }
        if let Some(note) = &threshold.note {
            self.wrapped("  note: ", note)?;
        }
        Ok(())
    }

    fn finding(&mut self, finding: &Finding) -> fmt::Result {
        let style = match finding.severity {
            Severity::High => RED,
            Severity::Medium => YELLOW,
            Severity::Low | Severity::Informational => CYAN,
        };
        let label = self.paint(style, &format!("{}[{}]", finding.severity, finding.id));
        let title = self.paint(BOLD, &clean(&finding.title));
        writeln!(self.out, "\n{label}: {title}")?;
        self.wrapped("  ", &finding.summary)?;
        writeln!(
            self.out,
            "  confidence {}, found by {}",
            finding.confidence, finding.detector
        )?;
        for evidence in &finding.evidence {
            if let Evidence::InvertedTrigger(trigger) = evidence {
                writeln!(
                    self.out,
                    "  trigger {:?} in {}, sha256 {}",
                    trigger.shape,
                    clean(&trigger.file),
                    clean(&trigger.sha256)
                )?;
            }
        }
        if !finding.atlas.is_empty() {
            let tags: Vec<&str> = finding.atlas.iter().map(|tag| tag.id.as_str()).collect();
            writeln!(self.out, "  ATLAS {}", clean(&tags.join(", ")))?;
        }
        Ok(())
    }

    /// A heading over a list that is not empty.
    fn heading(&mut self, text: &str, shown: bool) -> fmt::Result {
        if shown {
            let heading = self.paint(BOLD, text);
            writeln!(self.out, "\n{heading}")?;
        }
        Ok(())
    }

    fn item(&mut self, text: &str) -> fmt::Result {
        self.wrapped("  - ", text)
    }

    /// Words in lines of at most 96 characters; the lines after the first align with it.
    fn wrapped(&mut self, first: &str, text: &str) -> fmt::Result {
        let indent = first.chars().count();
        let mut line = first.to_owned();
        let mut used = indent;
        let mut empty = true;
        for word in clean(text).split_whitespace() {
            let length = word.chars().count();
            if !empty && used + 1 + length > 96 {
                writeln!(self.out, "{line}")?;
                line = " ".repeat(indent);
                used = indent;
                empty = true;
            }
            if !empty {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
            empty = false;
        }
        writeln!(self.out, "{line}")
    }

    fn paint(&self, style: &str, text: &str) -> String {
        match self.color {
            ColorChoice::Never => text.to_owned(),
            ColorChoice::Always => format!("\x1b[{style}m{text}\x1b[0m"),
        }
    }
}

fn verdict_style(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NoBackdoorFound => GREEN,
        Verdict::Inconclusive => CYAN,
        Verdict::Suspicious => YELLOW,
        Verdict::Backdoored => RED,
    }
}

/// Text without the characters that move a cursor, hide text or turn its direction.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns_direction {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
