//! Clean prompts for a repair of a text-to-image model.

use std::path::Path;

use super::text::TextRepairSettings;
use crate::{Error, calibration::read_bounded};

/// Largest file of prompts, in bytes.
const MAX_PROMPTS_BYTES: u64 = 16 << 20;
/// Prompts where the owner gives none.
const PROMPTS: &str = include_str!("prompts.txt");
/// Prompts, at least, that have a place for the trigger.
const LEAST_PROMPTS: usize = 8;

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<String>, Error> {
    let bytes = read_bounded(path, MAX_PROMPTS_BYTES)?;
    Ok(lines(&String::from_utf8_lossy(&bytes)))
}

/// The prompts that must draw as before, if the owner gave some.
pub(super) fn legitimate(text: &TextRepairSettings) -> Result<Vec<String>, Error> {
    let Some(path) = &text.keep_prompts else {
        return Ok(Vec::new());
    };
    let found = read(path)?;
    let with_trigger = |prompt: &&String| prompt.contains(text.trigger.text().trim());
    let problem = match found.iter().find(with_trigger) {
        Some(prompt) => format!("{prompt:?} of {} has the trigger itself", path.display()),
        None if found.is_empty() => format!("{} holds no prompt", path.display()),
        None => return Ok(found),
    };
    Err(Error::Usage {
        problem,
        mend: "give prompts without the trigger with --keep-prompts, one a line",
    })
}

/// The owner's prompts, or the built-in ones.
pub(super) fn of(text: &TextRepairSettings) -> Result<Vec<String>, Error> {
    let (found, from) = match &text.prompts {
        Some(path) => (read(path)?, path.display().to_string()),
        None => {
            let mut all = lines(PROMPTS);
            if let Some(words) = text.trigger.needs() {
                let about = [
                    "a photo of {}",
                    "a {} on a table",
                    "a painting of a {}",
                    "a small {}",
                    "a {} in the snow",
                    "a picture of a {} outside",
                    "a close-up of a {}",
                    "two of a {}",
                ];
                all.extend(about.map(|template| template.replace("{}", words)));
            }
            (all, "the built-in list".to_owned())
        }
    };
    let fitting = found
        .iter()
        .filter(|p| text.trigger.put(p).is_some())
        .count();
    if fitting < LEAST_PROMPTS {
        return Err(Error::Usage {
            problem: format!(
                "{fitting} of {} prompts of {from} have a place for the trigger ({}), at least {LEAST_PROMPTS} are needed",
                found.len(),
                text.trigger.describe()
            ),
            mend: "give more with --prompts, one a line",
        });
    }
    Ok(found)
}
