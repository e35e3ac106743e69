//! A report's folder: the report as JSON and HTML, and its images as files.

use std::{fs, path::Path};

use depurate_checkpoint::write_atomic;
use depurate_report::{
    Evidence, Png, RepairReport, Report, render_html, render_json, render_repair_html,
    render_repair_json,
};

use crate::Error;

/// Makes the folder and tries whether it can be written to, so that a long scan does not fail at its end.
///
/// # Errors
/// When it cannot be made or written to.
pub fn prepare(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::io("make the report directory", dir))?;
    tempfile::Builder::new()
        .prefix(".depurate-")
        .tempfile_in(dir)
        .map_err(Error::io("write to the report directory", dir))?;
    Ok(())
}

/// Writes `report.html`, the images and, last, `report.json`; each under a temporary name first. Whoever finds
/// `report.json` finds the rest.
///
/// # Errors
/// When a file cannot be rendered or written; files of earlier names are then whole, old or new.
pub fn write(report: &Report, dir: &Path) -> Result<(), Error> {
    let in_findings = report.findings.iter().flat_map(|finding| &finding.evidence);
    for (name, png) in pictures(in_findings.chain(&report.evidence)) {
        write_atomic(&dir.join(name), &png.to_bytes()?)?;
    }
    write_atomic(&dir.join("report.html"), render_html(report)?.as_bytes())?;
    write_atomic(&dir.join("report.json"), render_json(report)?.as_bytes())?;
    Ok(())
}

/// Writes `repair.html`, its images and, last, `repair.json`, as [`write()`] does for a scan.
///
/// # Errors
/// As [`write()`].
pub fn write_repair(report: &RepairReport, dir: &Path) -> Result<(), Error> {
    for (name, png) in pictures(report.evidence.iter()) {
        write_atomic(&dir.join(name), &png.to_bytes()?)?;
    }
    write_atomic(
        &dir.join("repair.html"),
        render_repair_html(report)?.as_bytes(),
    )?;
    write_atomic(
        &dir.join("repair.json"),
        render_repair_json(report)?.as_bytes(),
    )?;
    Ok(())
}

/// The images of evidence under file names.
fn pictures<'a>(evidence: impl Iterator<Item = &'a Evidence>) -> Vec<(String, &'a Png)> {
    let mut pictures = Vec::new();
    let mut grids = 0;
    for piece in evidence {
        match piece {
            Evidence::InvertedTrigger(trigger) => {
                pictures.push(("trigger.png".to_owned(), &trigger.image));
                pictures.push(("trigger-magnified.png".to_owned(), &trigger.magnified));
            }
            Evidence::ImageGrid(grid) => {
                grids += 1;
                pictures.push((
                    format!("grid-{grids:02}-{}.png", slug(&grid.title)),
                    &grid.png,
                ));
            }
            _ => {}
        }
    }
    pictures
}

/// A title as part of a file name: lower-case letters and digits with hyphens between them.
pub fn slug(title: &str) -> String {
    let plain = title.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            ' '
        }
    });
    let words: String = plain.take(60).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_become_plain_file_names() {
        assert_eq!(
            slug("noise + control: permuted pixels"),
            "noise-control-permuted-pixels"
        );
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("☃"), "");
    }
}
