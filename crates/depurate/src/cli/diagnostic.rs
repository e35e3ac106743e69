//! Errors on stderr: what, where, how to mend.

use miette::{GraphicalReportHandler, GraphicalTheme, Report};

use super::output;

/// Widest line that is not broken: paths stay whole.
const WIDTH: usize = 120;

/// Decides once how errors look: colours only on a terminal and never under `NO_COLOR`.
pub fn install() {
    let colours = output::stderr_is_colourful();
    // the hook can be set once only, and nothing else sets it
    let _ = miette::set_hook(Box::new(move |_| {
        let theme = if colours {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_links(false);
        Box::new(
            handler
                .with_width(WIDTH)
                .with_wrap_lines(false)
                .with_break_words(false),
        )
    }));
}

/// Shows an error with its causes and its help.
pub fn show(error: depurate::Error) {
    output::say(format!("{:?}", Report::new(error)).trim_end());
}
