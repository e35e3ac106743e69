//! The program as a test runs it.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// The program in `dir`, with `arguments` relative to it, a cache of its own and no other environment.
pub fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_depurate"));
    command
        .env_clear()
        .env("DEPURATE_CACHE", dir.join("cache"))
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .current_dir(dir)
        .args(arguments);
    command
}

/// What [`command`] answers.
pub fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().expect("the program runs")
}
