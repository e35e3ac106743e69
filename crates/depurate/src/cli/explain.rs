//! `depurate explain`: what an algorithm does, or what a finding means.

use std::fmt::Write as _;

use depurate::{
    Error,
    error::EXIT_OK,
    registry::{self, Algorithm, Entry},
};
use depurate_report::{FINDINGS, FindingInfo};

use super::output;

/// Explains one id, or lists all.
pub fn run(id: Option<&str>) -> Result<u8, Error> {
    let text = match id.map(registry::find).transpose()? {
        None => list(),
        Some(Entry::Algorithm(algorithm)) => explain_algorithm(&algorithm),
        Some(Entry::Finding(finding)) => explain_finding(finding),
    };
    output::write(None, text.as_bytes())?;
    Ok(EXIT_OK)
}

fn list() -> String {
    let mut out = String::from("algorithms\n");
    // writing to a String does not fail
    for algorithm in registry::algorithms() {
        let info = &algorithm.info;
        let _ = writeln!(
            out,
            "  {:<16} {} ({} {})",
            info.id, info.name, info.paper.authors, info.paper.year
        );
    }
    out.push_str("\nfindings\n");
    for finding in FINDINGS {
        let _ = writeln!(out, "  {:<16} {}", finding.id.to_string(), finding.title);
    }
    out
}

fn explain_algorithm(algorithm: &Algorithm) -> String {
    let info = &algorithm.info;
    let mut out = algorithm.documentation();
    let _ = writeln!(
        out,
        "\n\n## Identity\nid: {}\nstatus: {}",
        info.id,
        registry::status(info.status)
    );
    let _ = writeln!(out, "needs: {}", info.needs);
    let paper = &info.paper;
    let _ = write!(
        out,
        "paper: {}, \"{}\", {} {}",
        paper.authors, paper.title, paper.venue, paper.year
    );
    match paper.arxiv {
        Some(arxiv) => {
            let _ = writeln!(out, ", arXiv:{arxiv}");
        }
        None => out.push('\n'),
    }
    if let Some(reference) = &info.reference {
        let (repository, commit, licence) =
            (reference.repository, reference.commit, reference.licence);
        let _ = writeln!(
            out,
            "authors' code: {repository}, commit {commit}, licence {licence}"
        );
    }
    out
}

fn explain_finding(finding: &FindingInfo) -> String {
    let mut out = format!(
        "{}: {}\nseverity: {}\n",
        finding.id, finding.title, finding.severity
    );
    for (id, name) in finding.atlas {
        let _ = writeln!(out, "ATLAS {id}: {name}");
    }
    out
}
