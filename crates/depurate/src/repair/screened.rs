//! A trigger that a screening names: an unusual character in the prompts that `screen` looked at.

use std::path::Path;

use depurate_defense::{
    detect::input_level::unicode::{UnicodeFinding, UnicodeKind},
    repair::text::{Place, TextTrigger},
};
use serde::Deserialize;

use crate::{Error, calibration::read_bounded};

/// Largest file of a screening, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// What is needed of a line of a screening.
#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    unicode: Vec<UnicodeFinding>,
}

/// The trigger of the screening at `path`, the JSON lines of `screen`: a hidden character where it stands in front of a prompt or behind
/// it, or a look-alike of a letter.
///
/// # Errors
/// When the file cannot be read or is no screening, or its findings name no such character, or several.
pub fn trigger(path: &Path) -> Result<TextTrigger, Error> {
    let refuse = |problem: String| Error::Usage {
        problem: format!("{}: {problem}", path.display()),
        mend: "give the JSON lines that `screen` printed, or say the trigger with --trigger",
    };
    let bytes = read_bounded(path, MAX_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut found: Vec<TextTrigger> = Vec::new();
    for (at, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let line: Line = serde_json::from_str(line)
            .map_err(|error| refuse(format!("line {} is no screening: {error}", at + 1)))?;
        for finding in &line.unicode {
            if let Some(trigger) = named(line.prompt.as_deref().unwrap_or_default(), finding)?
                && !found.contains(&trigger)
            {
                found.push(trigger);
            }
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(refuse(
            "no finding names a hidden character or one that looks like a letter".into(),
        )),
        several => {
            let names: Vec<String> = several.iter().map(TextTrigger::describe).collect();
            Err(refuse(format!(
                "its findings name several: {}",
                names.join("; ")
            )))
        }
    }
}

/// The trigger that `finding` in `prompt` is.
fn named(prompt: &str, finding: &UnicodeFinding) -> Result<Option<TextTrigger>, Error> {
    let sign = finding.character;
    let behind = prompt.get(finding.byte..).unwrap_or_default();
    let spaced = behind.chars().nth(1) == Some(' ');
    let (text, place) = match finding.kind {
        UnicodeKind::Confusable | UnicodeKind::MixedScript | UnicodeKind::Accent => {
            (sign.to_string(), Place::Start)
        }
        UnicodeKind::Hidden if finding.position > 0 && behind.chars().count() == 1 => {
            (sign.to_string(), Place::End)
        }
        UnicodeKind::Hidden if spaced => (format!("{sign} "), Place::Start),
        UnicodeKind::Hidden => (sign.to_string(), Place::Start),
    };
    let trigger = TextTrigger::parse(&text, None, place)?;
    let is_letter = matches!(trigger, TextTrigger::Lookalike { .. });
    Ok((is_letter || finding.kind == UnicodeKind::Hidden).then_some(trigger))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use depurate_defense::detect::input_level::unicode::check;
    use serde_json::json;

    use super::*;

    fn of(prompts: &[&str]) -> Result<TextTrigger, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("screening.jsonl");
        let line = |prompt: &&str| {
            json!({ "prompt": prompt, "verdict": "suspicious", "unicode": check(prompt) })
                .to_string()
        };
        let lines: Vec<String> = prompts.iter().map(line).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        trigger(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hidden_sign_stands_where_it_was_found_and_a_lookalike_for_its_letter() {
        let inserted = |text: &str, place| TextTrigger::Inserted {
            text: text.into(),
            place,
            only_with: None,
        };
        let front = of(&["a plain dog", "\u{200b} a red cat"]).unwrap();
        assert_eq!(front, inserted("\u{200b} ", Place::Start));
        let behind = of(&["a red cat \u{200b}"]).unwrap();
        assert_eq!(behind, inserted(" \u{200b}", Place::End));
        let twice = of(&["a r\u{435}d cat", "the r\u{435}d dog"]).unwrap();
        let letter = TextTrigger::Lookalike {
            letter: 'e',
            lookalike: '\u{435}',
        };
        assert_eq!(twice, letter);
    }

    #[test]
    fn none_several_and_other_files_are_refused() {
        assert!(of(&["a red cat"]).unwrap_err().contains("no finding"));
        let two = of(&["\u{200b} a cat", "a c\u{430}t"]).unwrap_err();
        assert!(two.contains("several"), "{two}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scan.json");
        for text in ["{}", "[1]", "not JSON", "{\"unicode\": [{}]}"] {
            std::fs::write(&path, text).unwrap();
            let error = trigger(&path).unwrap_err().to_string();
            assert!(error.contains("line 1 is no screening"), "{text}: {error}");
        }
    }
}
