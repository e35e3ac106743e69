//! Ctrl-C and termination: the first asks the work to stop at its next step, the second ends the program.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use depurate::Error;
use depurate_defense::CancelToken;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// How often the thread that waits for a signal looks for one.
const POLL: Duration = Duration::from_millis(50);
/// A program ended by signal `n` exits with this much more than `n`.
const SIGNAL_EXIT: i32 = 128;

/// Signals received, and the token that tells the work about them.
pub struct Signals {
    /// Told about the first signal.
    pub cancel: Arc<CancelToken>,
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn install() -> Result<Self, Error> {
        let signals = Self {
            cancel: Arc::default(),
            received: Arc::default(),
        };
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let refused = || Error::io("handle", "signals");
            // in this order: the first signal finds the exit not yet armed, and arms it
            flag::register_conditional_shutdown(signal, SIGNAL_EXIT + signal, Arc::clone(&armed))
                .map_err(refused())?;
            flag::register(signal, Arc::clone(&armed)).map_err(refused())?;
            flag::register_usize(signal, Arc::clone(&signals.received), signal as usize)
                .map_err(refused())?;
        }
        let (received, cancel) = (Arc::clone(&signals.received), Arc::clone(&signals.cancel));
        thread::spawn(move || {
            while received.load(Ordering::SeqCst) == 0 {
                thread::sleep(POLL);
            }
            cancel.cancel();
        });
        Ok(signals)
    }

    /// The exit code of an interrupted program: 130 after Ctrl-C, 143 after termination; `None` without a signal.
    pub fn exit_code(&self) -> Option<u8> {
        match self.received.load(Ordering::SeqCst) {
            0 => None,
            signal => u8::try_from(SIGNAL_EXIT as usize + signal).ok(),
        }
    }
}
