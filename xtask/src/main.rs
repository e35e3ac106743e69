//! The project's own checks: `cargo xtask tidy` and `cargo xtask ci`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program

mod ci;
mod tidy;

use std::{env, path::PathBuf, process::ExitCode};

const USAGE: &str = "usage: cargo xtask tidy | ci\n\
    tidy  the invariants of ARCHITECTURE.md that a program can check\n\
    ci    everything that must pass before a change lands, in the order fmt, tidy, clippy, tests, docs";

fn main() -> ExitCode {
    let root = workspace_root();
    let passed = match env::args().nth(1).as_deref() {
        Some("tidy") => tidy::run(&root),
        Some("ci") => ci::run(&root),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The folder of the workspace's Cargo.toml: one above this package's.
fn workspace_root() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(package).join("..")
}
