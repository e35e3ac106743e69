//! Invariant 9: only the programs print.

use super::{Problem, Source};

const PRINTING: [&str; 6] = [
    "print!(",
    "println!(",
    "eprint!(",
    "eprintln!(",
    "io::stdout()",
    "io::stderr()",
];

/// Finds libraries that print.
pub fn check(sources: &[Source]) -> Vec<Problem> {
    let libraries = sources.iter().filter(|source| source.is_library());
    libraries
        .flat_map(|source| {
            source
                .lines_before_tests()
                .filter_map(|(line, text)| printed(source, line, text))
        })
        .collect()
}

fn printed(source: &Source, line: usize, text: &str) -> Option<Problem> {
    let code = text.trim_start();
    let found = PRINTING
        .iter()
        .find(|name| code.contains(*name))
        .filter(|_| !code.starts_with("//"))?;
    Some(source.problem(
        line,
        format!("`{found}…` in a library: return data, or use `tracing`"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    #[test]
    fn libraries_do_not_print_and_programs_and_tests_may() {
        let text = "//! println!(1)\nfn f() { println!(\"x\"); }\n#[cfg(test)]\nmod tests { fn g() { println!(); } }\n";
        let problems = check(&[
            source("crates/depurate-stats/src/lib.rs", text),
            source("crates/depurate/src/main.rs", text),
            source("crates/depurate/src/cli/output.rs", text),
            source("crates/depurate/tests/cli.rs", text),
        ]);
        assert_eq!(problems.len(), 1);
        assert_eq!(
            (problems[0].file.as_str(), problems[0].line),
            ("crates/depurate-stats/src/lib.rs", 2)
        );
    }
}
