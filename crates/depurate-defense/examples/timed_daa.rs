//! Times DAA-I and DAA-S in their reference mode on recorded maps, for `tools/bench-daa/released.py`:
//! `timed_daa FILE TOKENS` reads `maps [calls, TOKENS, 16, 16]` of a safetensors file.

use std::{
    error::Error,
    hint::black_box,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use depurate_checkpoint::{Limits, Weights};
use depurate_defense::{
    DefenseError,
    detect::input_level::{
        MapSource, PromptDetector, TokenMaps,
        daa_i::{Change, ContentMean, DaaIParams},
        daa_s::{DaaSParams, Flow, RELEASED_END, initial_state, rk45::Rk45},
    },
};

/// Calls that the released code looks at.
const CALLS: usize = 50;
/// How long each measurement lasts.
const LENGTH: Duration = Duration::from_millis(200);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(tokens)) = (arguments.next(), arguments.next()) else {
        return Err("usage: timed_daa FILE TOKENS".into());
    };
    let weights = Weights::open_file(Path::new(&file), &Limits::default())?;
    let values = weights.read_f32("maps")?;
    let mut maps = TokenMaps::from_values(tokens.parse()?, (16, 16), &values)?;
    let (daa_i, daa_s) = (
        DaaIParams::reference().build()?,
        DaaSParams::reference().build()?,
    );
    let (i, s) = (daa_i.score(&mut maps)?, daa_s.score(&mut maps)?);
    let both = seconds(|| {
        let source: &mut dyn MapSource = black_box(&mut maps);
        Ok(daa_i.score(source)?.score + daa_s.score(source)?.score)
    })?;
    let all = seconds(|| everything(black_box(&mut maps)))?;
    writeln!(
        std::io::stdout(),
        "{{\"daa_i\": {}, \"daa_s\": {}, \"both_s\": {both:e}, \"all_calls_s\": {all:e}}}",
        i.released,
        s.released
    )?;
    Ok(())
}

/// All that the released code computes: every change, and the states up to the last call.
fn everything(maps: &mut TokenMaps) -> Result<f64, DefenseError> {
    let changes = maps.calls().windows(2).take(CALLS - 1).map(|pair| {
        let change = Change::between(&pair[0], &pair[1], ContentMean::Released);
        change.eos - change.content
    });
    let sum: f64 = changes.sum();
    let start = initial_state(maps)?;
    let mut flow = Flow::new(maps);
    let mut solver = Rk45::new(&mut flow, &start, RELEASED_END)?;
    while solver.step(&mut flow)? {}
    Ok(sum + solver.state().iter().sum::<f64>())
}

/// Median seconds of a run.
fn seconds(mut work: impl FnMut() -> Result<f64, DefenseError>) -> Result<f64, DefenseError> {
    let (begun, mut taken) = (Instant::now(), Vec::new());
    while begun.elapsed() < LENGTH {
        let start = Instant::now();
        black_box(work()?);
        taken.push(start.elapsed().as_secs_f64());
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[taken.len() / 2])
}
