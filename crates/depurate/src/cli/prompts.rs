//! Prompts from a file, from standard input or from the command line, as they come.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use depurate::{
    Error,
    screen::{Input, InputForm, Inputs},
};
use depurate_defense::CancelToken;

use super::prompt_args::PromptSource;

/// How often a wait for a prompt looks whether it should end.
const POLL: Duration = Duration::from_millis(50);
/// Prompts read ahead.
const AHEAD: usize = 16;

/// Prompts that another thread reads, so that a wait for the next one can be interrupted.
pub struct Stream {
    name: PathBuf,
    receiver: Receiver<io::Result<Input>>,
}

impl Stream {
    /// Opens the source.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn open(source: &PromptSource, form: InputForm) -> Result<Self, Error> {
        if let Some(prompt) = &source.prompt {
            let (sender, receiver) = sync_channel(1);
            // a channel with room for one takes one
            let _ = sender.send(Ok(Input::single(prompt)));
            return Ok(Self {
                name: "--prompt".into(),
                receiver,
            });
        }
        match &source.prompts {
            Some(path) if path != Path::new("-") => {
                let file = File::open(path).map_err(Error::io("open", path))?;
                Ok(Self::of(path.clone(), file, form))
            }
            _ => Ok(Self::of("standard input".into(), io::stdin(), form)),
        }
    }

    fn of(name: PathBuf, reader: impl Read + Send + 'static, form: InputForm) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        thread::spawn(move || {
            for input in Inputs::new(BufReader::new(reader), form) {
                let failed = input.is_err();
                if sender.send(input).is_err() || failed {
                    return;
                }
            }
        });
        Self { name, receiver }
    }

    /// The next prompt; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read, or the caller asked to stop.
    pub fn next(&self, cancel: &CancelToken) -> Result<Option<Input>, Error> {
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Interrupted);
            }
            match self.receiver.recv_timeout(POLL) {
                Ok(input) => {
                    return input
                        .map(Some)
                        .map_err(Error::io("read", self.name.clone()));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
