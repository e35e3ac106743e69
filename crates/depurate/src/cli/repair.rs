//! `depurate repair`: a model without the trigger that a scan found, and the proof.

use std::path::{Path, PathBuf};

use depurate::{
    Error,
    cache::Cache,
    error::{EXIT_FINDING, EXIT_OK},
    repair::{RepairSettings, TextRepairSettings, repair, screened_trigger},
    report_dir,
    scan::Watch,
};
use depurate_checkpoint::Limits;
use depurate_defense::repair::text::{Place, TextTrigger};

use super::{
    args::{RepairArgs, TextRepairArgs, TriggerPlace},
    output,
    progress::Display,
    reproduce::CommandLine,
    scan::set_threads,
    signals::Signals,
};

/// Images of each replayed trigger.
const REPLAY_IMAGES: usize = 16;
/// Images of each set that a Fréchet distance compares.
const QUALITY_IMAGES: usize = 256;

/// Repairs; exit code 1 if no attempt passed.
pub fn run(args: &RepairArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    set_threads(&args.run)?;
    let proof = args
        .report_dir
        .clone()
        .unwrap_or_else(|| beside(&args.output));
    report_dir::prepare(&proof)?;
    let settings = RepairSettings {
        scan: args.from.clone(),
        text: text(&args.text)?,
        out: args.output.clone(),
        method: args.method,
        clean_data: args.clean_data.clone(),
        control: args.control.clone(),
        own_images: args.own_images,
        steps: args.steps.map(|steps| steps as usize),
        replay_images: REPLAY_IMAGES,
        quality_images: QUALITY_IMAGES,
        max_quality_drop: args.max_quality_drop,
        compact: args.compact,
        seed: args.run.seed,
        budget: args.budget,
        resume: !args.resume.no_resume,
        device: args.run.device,
        limits: Limits::default(),
        command: command(args),
    };
    let cache = Cache::from_environment();
    let display = Display::new(verbose);
    let watch = Watch {
        cancel: &signals.cancel,
        progress: &display,
    };
    let report = repair(&args.model, &settings, &cache, watch);
    display.clear();
    let report = report?;
    report_dir::write_repair(&report, &proof)?;
    let mut text = format!("{}\n", report.why);
    for attempt in &report.attempts {
        text += &format!(
            "\n{} ({} steps, {} network evaluations, {:.0} s)\n",
            attempt.method, attempt.steps, attempt.evaluations, attempt.seconds
        );
        for check in &attempt.removed_again {
            text += &format!("  again   {}: {}\n", check.meaning, check.after);
        }
        for check in &attempt.checks {
            let before = check.before.as_deref().unwrap_or("-");
            let mark = if check.passed { "passed" } else { "FAILED" };
            text += &format!(
                "  {mark}  {}: {before} -> {}; {}\n",
                check.name, check.after, check.allowed
            );
        }
    }
    if let Some(repaired) = &report.repaired {
        text += &format!("\nrepaired model  {repaired}\n");
    }
    text += &format!("proof           {}\n", proof.join("repair.html").display());
    output::write(None, text.as_bytes())?;
    Ok(if report.passed { EXIT_OK } else { EXIT_FINDING })
}

/// What is asked of a text-to-image model, where a trigger in prompts is given.
fn text(args: &TextRepairArgs) -> Result<Option<TextRepairSettings>, Error> {
    let place = match args.place {
        TriggerPlace::Start => Place::Start,
        TriggerPlace::End => Place::End,
    };
    let trigger = match (&args.trigger, &args.trigger_from) {
        (Some(text), _) => {
            let trigger = TextTrigger::parse(text, args.instead_of.as_deref(), place)?;
            match &args.only_with {
                Some(word) => trigger.only_with(word)?,
                None => trigger,
            }
        }
        (None, Some(screening)) => screened_trigger(screening)?,
        (None, None) => return Ok(None),
    };
    let layers = args.layers.layers();
    if !layers.embeddings.is_empty() {
        return Err(Error::Usage {
            problem: "a textual inversion is no part of a model's directory".into(),
            mend: "leave out --embedding: without its file the model has none of its tokens",
        });
    }
    Ok(Some(TextRepairSettings {
        trigger,
        prompts: args.prompts.clone(),
        keep_prompts: args.keep_prompts.clone(),
        layers,
        base: args.base.clone(),
        picture_steps: usize::from(args.picture_steps),
        guidance: args.guidance,
    }))
}

/// `clean` gives `clean-proof`.
fn beside(out: &Path) -> PathBuf {
    let mut name = out
        .file_name()
        .map(std::ffi::OsStr::to_os_string)
        .unwrap_or_default();
    name.push("-proof");
    out.with_file_name(name)
}

fn command(args: &RepairArgs) -> String {
    let given = |value: Option<&String>| value.cloned().into_iter();
    let line = CommandLine::new("repair")
        .word(&args.model)
        .path("--from", args.from.as_deref())
        .path("-o", Some(&args.output))
        .path("--report-dir", args.report_dir.as_deref())
        .option("--method", args.method.as_str())
        .each("--steps", args.steps.map(|n| n.to_string()).into_iter())
        .option("--seed", args.run.seed.to_string());
    let text = &args.text;
    if text.trigger.is_some() || text.trigger_from.is_some() {
        let place = match text.place {
            TriggerPlace::Start => "start",
            TriggerPlace::End => "end",
        };
        return line
            .layers(&text.layers.layers())
            .each("--trigger", given(text.trigger.as_ref()))
            .each("--instead-of", given(text.instead_of.as_ref()))
            .each("--only-with", given(text.only_with.as_ref()))
            .path("--trigger-from", text.trigger_from.as_deref())
            .each(
                "--place",
                text.trigger.as_ref().map(|_| place.to_owned()).into_iter(),
            )
            .path("--prompts", text.prompts.as_deref())
            .path("--keep-prompts", text.keep_prompts.as_deref())
            .path("--base", text.base.as_deref())
            .option("--picture-steps", text.picture_steps.to_string())
            .option("--guidance", text.guidance.to_string())
            .into_string();
    }
    line.path("--clean-data", args.clean_data.as_deref())
        .path("--control", args.control.as_deref())
        .option("--own-images", args.own_images.to_string())
        .flag("--compact", args.compact)
        .option("--max-quality-drop", args.max_quality_drop.to_string())
        .into_string()
}
