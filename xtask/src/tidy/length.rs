//! Files are short: at most 400 lines without their tests and comments, and never more than 600 in all.

use super::{Problem, Source};

/// Lines of a file of a library or program, without its tests and the lines that are comments only.
const MOST: usize = 400;
/// Lines of any Rust file.
const HARD: usize = 600;

/// Finds long files.
pub fn check(sources: &[Source]) -> Vec<Problem> {
    sources
        .iter()
        .filter(|source| source.is_rust())
        .filter_map(too_long)
        .collect()
}

fn too_long(source: &Source) -> Option<Problem> {
    let (all, code) = (
        source.text.lines().count(),
        source
            .lines_before_tests()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .count(),
    );
    let is_source = source.path.contains("/src/");
    if all > HARD {
        Some(source.problem(
            0,
            format!("{all} lines, at most {HARD}: split it by concept"),
        ))
    } else if is_source && code > MOST {
        Some(source.problem(
            0,
            format!("{code} lines without tests and comments, at most {MOST}: split it by concept"),
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    #[test]
    fn tests_do_not_count_up_to_the_hard_limit() {
        let file = |path, code: usize, tests: usize| {
            source(
                path,
                &format!(
                    "{}#[cfg(test)]\n{}",
                    "x\n".repeat(code),
                    "y\n".repeat(tests)
                ),
            )
        };
        let long = |path, code, tests| !check(&[file(path, code, tests)]).is_empty();
        assert!(!long("crates/a/src/lib.rs", 400, 150));
        assert!(long("crates/a/src/lib.rs", 401, 0));
        assert!(long("crates/a/src/lib.rs", 400, 250));
        assert!(!long("crates/a/tests/t.rs", 550, 0));
        assert!(long("crates/a/tests/t.rs", 601, 0));
    }
}
