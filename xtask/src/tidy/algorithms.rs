//! Invariant 10 and the documentation of algorithms: one id, one spelling; every module has the same headings.

use super::{Problem, Source};

/// Headings of the module of an algorithm with an id.
const HEADINGS: [&str; 6] = [
    "Paper",
    "Notation",
    "Needs",
    "Deviations",
    "Fails when",
    "Cost",
];
/// Where algorithms with an id live.
const HOMES: [&str; 2] = [
    "crates/depurate-defense/src/",
    "crates/depurate-attack/src/",
];
/// What every algorithm states.
const IDENTITY: &str = "pub const ID: &str = \"";
/// Folders in which an id names a file or folder.
const NAMED_AFTER_IDS: [&str; 2] = ["golden/", "docs/algorithms/"];

/// Checks every module that states an algorithm's identity.
pub fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut ids = Vec::new();
    let stated = |source: &&Source| {
        HOMES.iter().any(|home| source.path.starts_with(home)) && source.text.contains(IDENTITY)
    };
    for source in sources.iter().filter(stated) {
        problems.extend(missing_headings(source));
        if let Some(id) = id(source) {
            problems.extend(misnamed(source, id));
            ids.push(id);
        }
    }
    problems.extend(sources.iter().filter_map(|source| misspelt(source, &ids)));
    problems
}

fn missing_headings(source: &Source) -> Vec<Problem> {
    let docs: Vec<&str> = source
        .text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .collect();
    let mut missing: Vec<String> = HEADINGS
        .iter()
        .map(|heading| format!("## {heading}"))
        .filter(|heading| !docs.contains(&heading.as_str()))
        .collect();
    if !docs.first().is_some_and(|line| line.starts_with("# ")) {
        missing.insert(0, "# name: what it is, in the first line".into());
    }
    missing
        .into_iter()
        .map(|heading| source.problem(1, format!("the module's documentation has no `{heading}`")))
        .collect()
}

/// The id that a module states.
fn id(source: &Source) -> Option<&str> {
    let text = &source.text;
    let start = text.find(IDENTITY)? + IDENTITY.len();
    text[start..].split('"').next()
}

fn misnamed(source: &Source, id: &str) -> Option<Problem> {
    let stem = source.path.rsplit('/').next()?.strip_suffix(".rs")?;
    let expected = id.replace('-', "_");
    (stem != expected).then(|| {
        source.problem(
            0,
            format!("algorithm `{id}` lives in `{stem}.rs`: call the file `{expected}.rs`"),
        )
    })
}

/// A file or folder named almost like an id.
fn misspelt(source: &Source, ids: &[&str]) -> Option<Problem> {
    let rest = NAMED_AFTER_IDS
        .iter()
        .find_map(|folder| source.path.strip_prefix(folder))?;
    let name = rest.split('/').next()?.trim_end_matches(".md");
    let letters = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let id = ids
        .iter()
        .find(|id| letters(id) == letters(name) && **id != name)?;
    Some(source.problem(0, format!("`{name}` is algorithm `{id}`: spell it alike")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    const GOOD: &str = "//! # X: an algorithm\n//! ## Paper\n//! ## Notation\n//! ## Needs\n//! ## Deviations\n\
        //! ## Fails when\n//! ## Cost\npub const ID: &str = \"shift-response\";\n";

    #[test]
    fn a_complete_module_passes() {
        let path = "crates/depurate-defense/src/detect/model_level/shift_response.rs";
        assert_eq!(
            check(&[
                source(path, GOOD),
                source("golden/shift-response/a.json", "")
            ]),
            []
        );
    }

    #[test]
    fn a_missing_heading_a_wrong_name_and_a_second_spelling_are_found() {
        let path = "crates/depurate-defense/src/shift.rs";
        let text = GOOD.replace("//! ## Cost\n", "");
        let problems = check(&[
            source(path, &text),
            source("golden/shift_response/a.json", ""),
        ]);
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 3, "{text:?}");
        assert!(
            text[0].contains("## Cost")
                && text[1].contains("shift_response.rs")
                && text[2].contains("golden/")
        );
    }
}
