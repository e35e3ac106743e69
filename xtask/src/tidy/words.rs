//! Words and names that do not belong into the project: unfinished work, paths of one machine, vague modules.

use super::{Problem, Source};

/// What must not stand in any text file, in halves so that this file does not hold it, and why.
const FORBIDDEN: [(&str, &str, &str); 10] = [
    ("todo", "!(", "finish it"),
    ("unimpl", "emented!(", "finish it"),
    ("FIX", "ME", "mend it"),
    ("XX", "X:", "mend it"),
    ("/ro", "ot/", "a path of one machine: use a relative one"),
    ("/wo", "rk/", "a path of one machine: use a relative one"),
    ("../sh", "ared", "a path outside the project"),
    ("artif", "actory", "a host that others do not have"),
    (
        "#[ig",
        "nore",
        "a test that does not run: run it or remove it",
    ),
    ("allow(dead", "_code", "dead code: remove it"),
];

/// Names of modules that name nothing.
const VAGUE: [&str; 6] = ["utils", "util", "helper", "helpers", "common", "misc"];
/// Endings of modules that are another one's twin.
const TWIN: [&str; 3] = ["_v2", "_big", "_new"];

/// Finds forbidden words and names.
pub fn check(sources: &[Source]) -> Vec<Problem> {
    let words = sources.iter().flat_map(|source| {
        source
            .text
            .lines()
            .enumerate()
            .filter_map(|(index, line)| forbidden(source, index + 1, line))
    });
    words.chain(sources.iter().filter_map(vague)).collect()
}

fn forbidden(source: &Source, line: usize, text: &str) -> Option<Problem> {
    let (first, second, mend) = FORBIDDEN
        .iter()
        .find(|(first, second, _)| text.contains(&format!("{first}{second}")))?;
    Some(source.problem(line, format!("`{first}{second}`: {mend}")))
}

fn vague(source: &Source) -> Option<Problem> {
    let mut parts = source.path.strip_suffix(".rs")?.rsplit('/');
    let name = match parts.next()? {
        "mod" => parts.next()?,
        name => name,
    };
    let bad = VAGUE.contains(&name) || TWIN.iter().any(|ending| name.ends_with(ending));
    bad.then(|| source.problem(0, format!("module `{name}`: name it after what it holds")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    #[test]
    fn unfinished_work_and_foreign_paths_are_found() {
        for (first, second, _) in FORBIDDEN {
            let text = format!("fine\nnot fine: {first}{second}\n");
            let problems = check(&[source("docs/a.md", &text)]);
            assert_eq!(problems.len(), 1, "{first}{second}");
            assert_eq!(problems[0].line, 2);
        }
        assert_eq!(
            check(&[source("docs/a.md", "work/main and unshared network/\n")]),
            []
        );
    }

    #[test]
    fn modules_have_names() {
        for path in [
            "crates/a/src/utils.rs",
            "crates/a/src/helper/mod.rs",
            "crates/a/src/reverse_big.rs",
        ] {
            assert_eq!(check(&[source(path, "")]).len(), 1, "{path}");
        }
        assert_eq!(check(&[source("crates/a/src/cli/mod.rs", "")]), []);
    }
}
