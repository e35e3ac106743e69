//! `depurate scan` and `depurate report`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use depurate::{
    Error,
    cache::Cache,
    calibration::read_bounded,
    error::{EXIT_ERROR, EXIT_FINDING, EXIT_OK, EXIT_TRANSIENT, EXIT_UNCHECKED},
    report_dir,
    scan::{End, Scan, ScanSettings, Watch, scan},
};
use depurate_checkpoint::Limits;
use depurate_report::{
    ColorChoice, Report, ReportError, Verdict, parse_json, render_html, render_json, render_text,
};

use super::{
    args::{Format, OnInconclusive, ReportArgs, RunArgs, ScanArgs},
    diagnostic, output,
    progress::Display,
    reproduce::CommandLine,
    signals::Signals,
};

/// Scans every model; the exit code is the worst of theirs.
pub fn run(args: ScanArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    output::check(args.output.as_deref())?;
    set_threads(&args.run)?;
    if args.format == Format::Html && args.models.len() > 1 {
        return Err(Error::Usage {
            problem: "one HTML page holds one model".into(),
            mend: "scan several models with --report-dir, which writes a page for each",
        });
    }
    let detector = args.detector.build(args.profile)?;
    let cache = Cache::from_environment();
    let display = Display::new(verbose);
    let watch = Watch {
        cancel: &signals.cancel,
        progress: &display,
    };
    let mut reports = Vec::new();
    let mut worst = EXIT_OK;
    for (model, report_dir) in args.models.iter().zip(report_dirs(&args)) {
        let settings = settings(&args, model, report_dir.as_deref());
        let outcome = prepare(report_dir.as_deref())
            .and_then(|()| scan(model, &settings, &detector, &cache, watch));
        display.clear();
        let code = match outcome {
            Ok(scan) => {
                let code = exit_code(&args, &scan, signals);
                if let Some(dir) = &report_dir {
                    report_dir::write(&scan.report, dir)?;
                }
                reports.push((scan, report_dir));
                code
            }
            Err(error) if args.models.len() == 1 => return Err(error),
            Err(error) => {
                let code = error.exit_code();
                diagnostic::show(error);
                code
            }
        };
        worst = worse(worst, code);
        if signals.exit_code().is_some() {
            break;
        }
    }
    print(&args, &reports)?;
    for (scan, _) in reports {
        scan.close();
    }
    Ok(worst)
}

fn prepare(report_dir: Option<&Path>) -> Result<(), Error> {
    report_dir.map_or(Ok(()), report_dir::prepare)
}

/// Makes rayon's threads, once, before anything computes. This thread is one of them: every kernel then has one thread less
/// to wake, and thousands of short ones run much faster (docs/performance.md).
pub fn set_threads(run: &RunArgs) -> Result<(), Error> {
    let threads = run.threads.unwrap_or(0); // 0: as many as there are cores
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.into())
        .use_current_thread()
        .build_global()
        .map_err(|error| Error::Usage {
            problem: format!("{threads} threads cannot be started: {error}"),
            mend: "give a smaller --threads",
        })
}

fn settings(args: &ScanArgs, model: &Path, report_dir: Option<&Path>) -> ScanSettings {
    let layers = args.layers.layers();
    let command = CommandLine::new("scan")
        .word(model)
        .path("--base", args.base.as_deref())
        .layers(&layers)
        .option("--profile", args.profile.as_str())
        .option("--detector", args.detector.as_str())
        .option("--seed", args.run.seed.to_string())
        .option("--fpr", args.fpr.to_string())
        .path("--calibration", args.calibration.as_deref())
        .flag("--alone", args.alone)
        .path("--report-dir", report_dir);
    ScanSettings {
        profile: args.profile,
        seed: args.run.seed,
        budget: args.budget,
        resume: !args.resume.no_resume,
        target_fpr: args.fpr,
        beside: if args.alone {
            Vec::new()
        } else {
            args.detector.beside(args.profile)
        },
        calibration: args.calibration.clone(),
        base: args.base.clone(),
        layers,
        device: args.run.device,
        limits: Limits::default(),
        report_dir: report_dir.map(Path::to_owned),
        command: command.into_string(),
    }
}

/// Where each model's report goes: for one model the folder itself, for several a folder in it named after each.
fn report_dirs(args: &ScanArgs) -> Vec<Option<PathBuf>> {
    let mut taken = BTreeSet::new();
    let mut folder = |model: &PathBuf| {
        let name = model
            .file_name()
            .map(|name| report_dir::slug(&name.to_string_lossy()))
            .unwrap_or_default();
        let name = if name.is_empty() {
            "model".to_owned()
        } else {
            name
        };
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut free = std::iter::once(name.clone())
            .chain(numbered)
            .filter(|name| !taken.contains(name));
        let name = free.next().unwrap_or(name);
        taken.insert(name.clone());
        name
    };
    let several = args.models.len() > 1;
    let of = |model| {
        let dir = args.report_dir.as_ref()?;
        Some(if several {
            dir.join(folder(model))
        } else {
            dir.clone()
        })
    };
    args.models.iter().map(of).collect()
}

fn exit_code(args: &ScanArgs, scan: &Scan, signals: &Signals) -> u8 {
    let verdict = scan.report.verdict;
    match scan.end {
        End::Interrupted => signals.exit_code().unwrap_or(EXIT_UNCHECKED),
        End::Unchecked => EXIT_UNCHECKED,
        End::Scored if verdict.reaches(args.fail_on.verdict()) => EXIT_FINDING,
        End::Scored
            if verdict == Verdict::Inconclusive && args.on_inconclusive == OnInconclusive::Fail =>
        {
            EXIT_UNCHECKED
        }
        End::Scored => EXIT_OK,
    }
}

/// The exit code of a scan of several models: an interruption is the worst, then a finding, then an error, then a model
/// that could not be checked.
fn worse(a: u8, b: u8) -> u8 {
    const ORDER: [u8; 5] = [
        EXIT_OK,
        EXIT_UNCHECKED,
        EXIT_TRANSIENT,
        EXIT_ERROR,
        EXIT_FINDING,
    ];
    let rank = |code: u8| {
        ORDER
            .iter()
            .position(|&known| known == code)
            .unwrap_or(ORDER.len())
    };
    if rank(b) > rank(a) { b } else { a }
}

/// Prints the reports in the format asked for; several as text one after the other, as JSON in a list.
fn print(args: &ScanArgs, reports: &[(Scan, Option<PathBuf>)]) -> Result<(), Error> {
    let output = args.output.as_deref();
    let colours = output::colours(output);
    let text = match (args.format, reports) {
        (_, []) => return Ok(()),
        (Format::Json, [_, _, ..]) => {
            let all: Result<Vec<String>, ReportError> = reports
                .iter()
                .map(|(scan, _)| render_json(&scan.report))
                .collect();
            format!("[\n{}]\n", all?.join(","))
        }
        (format, reports) => {
            let rendered: Result<Vec<String>, Error> = reports
                .iter()
                .map(|(scan, dir)| {
                    let page = dir
                        .as_ref()
                        .map(|dir| dir.join("report.html").display().to_string());
                    rendered(&scan.report, format, colours, page.as_deref())
                })
                .collect();
            rendered?.join("\n")
        }
    };
    output::write(output, text.as_bytes())
}

fn rendered(
    report: &Report,
    format: Format,
    colours: ColorChoice,
    page: Option<&str>,
) -> Result<String, Error> {
    Ok(match format {
        Format::Text => render_text(report, colours, page),
        Format::Json => render_json(report)?,
        Format::Html => render_html(report)?,
    })
}

/// Largest report that is read, in bytes.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// Renders the JSON of an earlier scan.
pub fn render(args: &ReportArgs) -> Result<u8, Error> {
    output::check(args.output.as_deref())?;
    let bytes = read_bounded(&args.scan, MAX_REPORT_BYTES)?;
    let refuse = |source| Error::NoReport {
        path: args.scan.clone(),
        source,
    };
    let report = parse_json(&String::from_utf8_lossy(&bytes)).map_err(refuse)?;
    let output = args.output.as_deref();
    let text = rendered(&report, args.format, output::colours(output), None)?;
    output::write(output, text.as_bytes())?;
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_outranks_an_error_and_an_interruption_outranks_both() {
        let worst = |codes: &[u8]| codes.iter().copied().fold(EXIT_OK, worse);
        assert_eq!(worst(&[0, 3, 0]), 3);
        assert_eq!(worst(&[3, 2, 75]), 2);
        assert_eq!(worst(&[1, 2, 3]), 1);
        assert_eq!(worst(&[1, 130]), 130);
        assert_eq!(worst(&[143, 1]), 143);
    }
}
