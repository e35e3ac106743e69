//! Data to stdout or to a file, everything else to stderr.

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use depurate::Error;
use depurate_checkpoint::write_atomic;
use depurate_report::ColorChoice;

/// Writes data to `path`, or to stdout for none and for `-`. A file appears under its name when it is complete; a pipe
/// or a device is written to as it is.
///
/// # Errors
/// When it cannot be written. A reader that closed the pipe early is no error.
pub fn write(path: Option<&Path>, data: &[u8]) -> Result<(), Error> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        let mut stdout = io::stdout().lock();
        return match stdout.write_all(data).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io("write", "standard output")(error))
            }
            _ => Ok(()),
        };
    };
    match fs::canonicalize(path) {
        Ok(real) if real.is_file() => write_atomic(&real, data)?,
        Ok(_) => fs::write(path, data).map_err(Error::io("write", path))?,
        Err(_) => write_atomic(path, data)?,
    }
    Ok(())
}

/// Refuses a place that cannot be written to before hours are spent on what shall go there.
///
/// # Errors
/// When its directory does not exist, or it is a directory itself.
pub fn check(path: Option<&Path>) -> Result<(), Error> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        return Ok(());
    };
    if path.is_dir() {
        return Err(Error::io("write", path)(io::ErrorKind::IsADirectory.into()));
    }
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() && !dir.is_dir() => {
            Err(Error::io("write", path)(io::ErrorKind::NotFound.into()))
        }
        _ => Ok(()),
    }
}

/// One line on stderr. Nobody may be listening, and that is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether text for `output` may carry colours.
pub fn colours(output: Option<&Path>) -> ColorChoice {
    let to_terminal = output.is_none() && io::stdout().is_terminal();
    if to_terminal && colours_are_welcome() {
        ColorChoice::Always
    } else {
        ColorChoice::Never
    }
}

/// Whether messages may carry colours.
pub fn stderr_is_colourful() -> bool {
    io::stderr().is_terminal() && colours_are_welcome()
}

fn colours_are_welcome() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
