//! Clean prompts for a repair of a text-to-image model.

use super::text::TextRepairSettings;
use crate::{Error, calibration::read_bounded};

/// Largest file of prompts, in bytes.
const MAX_PROMPTS_BYTES: u64 = 16 << 20;
/// Prompts where the owner gives none.
const PROMPTS: &str = include_str!("prompts.txt");
/// Prompts, at least, that have a place for the trigger.
const LEAST_PROMPTS: usize = 8;

/// The owner's prompts, or the built-in ones.
pub(super) fn of(text: &TextRepairSettings) -> Result<Vec<String>, Error> {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(str::to_owned).collect()
    };
    let (found, from) = match &text.prompts {
        Some(path) => {
            let bytes = read_bounded(path, MAX_PROMPTS_BYTES)?;
            let from = path.display().to_string();
            (lines(&String::from_utf8_lossy(&bytes)), from)
        }
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
