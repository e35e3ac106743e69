//! What a scan found, read back.

use std::{fs, path::Path};

use depurate_checkpoint::{Limits, sha256_file};
use depurate_defense::repair::KnownTrigger;
use depurate_diffusion::Denoiser;
use depurate_report::{Evidence, parse_json};

use crate::{Error, calibration::read_bounded, subject::Opened, triggers};

/// Largest report that is read, in bytes.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// The triggers of the scan, if it is of this very model and their files are those that it wrote.
pub(super) fn triggers(
    scan: &Path,
    limits: &Limits,
    opened: &Opened,
) -> Result<Vec<KnownTrigger>, Error> {
    let bytes = read_bounded(scan, MAX_REPORT_BYTES)?;
    let refuse = |source| Error::NoReport {
        path: scan.to_path_buf(),
        source,
    };
    let report = parse_json(&String::from_utf8_lossy(&bytes)).map_err(refuse)?;
    let folder = scan.parent().unwrap_or(Path::new("."));
    let shape = opened.pipeline.sample_shape();
    let in_findings: Vec<&Evidence> = report
        .findings
        .iter()
        .flat_map(|finding| &finding.evidence)
        .filter(|evidence| matches!(evidence, Evidence::InvertedTrigger(_)))
        .collect();
    // a detector that found nothing reconstructs something all the same: it counts only where nobody found anything
    let evidence: Vec<&Evidence> = if in_findings.is_empty() {
        report.evidence.iter().collect()
    } else {
        in_findings
    };
    let mut found: Vec<KnownTrigger> = Vec::new();
    for evidence in evidence {
        let Evidence::InvertedTrigger(trigger) = evidence else {
            continue;
        };
        let path = folder.join(plain(&trigger.file)?);
        if !path.exists() {
            return Err(Error::Usage {
                problem: format!("{} is missing", path.display()),
                mend: "scan again with --report-dir, which keeps the trigger beside the report",
            });
        }
        let sha256 = sha256_file(&path, None)?;
        if sha256 != trigger.sha256 {
            return Err(Error::Usage {
                problem: format!("{} is not the file that the scan wrote", path.display()),
                mend: "scan again with --report-dir and give the report.json of that folder",
            });
        }
        let read = triggers::read(&path, shape, limits)?;
        if read.model_sha256.as_deref() != Some(&opened.model_sha256) {
            return Err(Error::Usage {
                problem: format!("{} was reconstructed from another model", path.display()),
                mend: "scan the model that shall be repaired",
            });
        }
        let known = KnownTrigger {
            shape,
            shift: read.shift,
            gamma: read.gamma,
            firing: read.firing,
            target: read.target,
        };
        known.check()?;
        if known.target.is_none() {
            return Err(Error::Usage {
                problem: format!("{} holds no target", path.display()),
                mend: "the scan stopped before it had one: let it finish",
            });
        }
        if !found.iter().any(|other| same(other, &known)) {
            found.push(known);
        }
    }
    if found.is_empty() {
        return Err(Error::Usage {
            problem: format!("{} holds no trigger", scan.display()),
            mend: "give the report.json of a scan with --report-dir that reconstructed one",
        });
    }
    Ok(found)
}

/// Whether two detectors reconstructed one trigger: the same sampler fires both, and they point the same way.
fn same(a: &KnownTrigger, b: &KnownTrigger) -> bool {
    /// Cosine from which two shifts count as one.
    const ALIKE: f64 = 0.9;
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    let (x, y) = (&a.shift, &b.shift);
    a.firing == b.firing && dot(x, y) > ALIKE * (dot(x, x) * dot(y, y)).sqrt()
}

/// A name without a way out of the report's folder: the report may be hostile.
fn plain(file: &str) -> Result<&str, Error> {
    let path = Path::new(file);
    match path.file_name() {
        Some(name) if name == path.as_os_str() => Ok(file),
        _ => Err(Error::Usage {
            problem: format!("`{file}` is no file beside the report"),
            mend: "scan with --report-dir and give the report.json of that folder",
        }),
    }
}

/// Makes sure that a directory can be made at `out`, before hours are spent.
pub(super) fn writable(out: &Path) -> Result<(), Error> {
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io("make the directory", parent))?;
    tempfile::Builder::new()
        .prefix(".depurate-")
        .tempfile_in(parent)
        .map_err(Error::io("write to the directory", parent))?;
    Ok(())
}
