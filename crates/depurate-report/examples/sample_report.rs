//! Writes the HTML of an invented report, to look at the layout:
//! `cargo run -p depurate-report --example sample_report -- sample.html [benign]`
#![allow(clippy::print_stderr)]

use std::error::Error;

use depurate_report::render_html;

mod sample;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        return Err("give the path of the HTML file to write".into());
    };
    let report = match args.next().as_deref() {
        Some("benign") => sample::benign()?,
        _ => sample::backdoored()?,
    };
    std::fs::write(&path, render_html(&report)?)?;
    eprintln!("wrote {path}");
    Ok(())
}
