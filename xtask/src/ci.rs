//! Everything that must pass before a change lands.

use std::{path::Path, process::Command, time::Instant};

use crate::tidy;

/// Cargo's part, in order; cheap checks first. One profile throughout, so that nothing is built twice.
const STEPS: [&[&str]; 4] = [
    &["fmt", "--all", "--check"],
    &[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
    &["test", "--release", "--workspace"],
    &["doc", "--release", "--workspace", "--no-deps"],
];

/// Runs every step until one fails.
pub fn run(root: &Path) -> bool {
    let (first, rest) = STEPS.split_at(1);
    first.iter().all(|step| cargo(root, step))
        && tidy::run(root)
        && rest.iter().all(|step| cargo(root, step))
}

fn cargo(root: &Path, arguments: &[&str]) -> bool {
    println!("$ cargo {}", arguments.join(" "));
    let clock = Instant::now();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status = command
        .args(arguments)
        .current_dir(root)
        .env("RUSTDOCFLAGS", "-D warnings")
        .status();
    let passed = match status {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cargo cannot be started: {error}");
            false
        }
    };
    println!(
        "{} after {:.0} s\n",
        if passed { "passed" } else { "FAILED" },
        clock.elapsed().as_secs_f64()
    );
    passed
}
