//! The program `depurate`. Data goes to stdout, everything else to stderr.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

/// Sampling allocates and frees many large tensors; the system's allocator gives that memory back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
