//! The maps of a prompt's tokens as pictures: at a few calls side by side, and as an animation over all.
//!
//! Each token has a scale of its own, from its least to its largest value over all calls, because BOS draws most of the attention
//! and the others would be black beside it.

use depurate_defense::detect::input_level::CallMaps;

use super::canvas::{Canvas, LINE, png, text_width};
use crate::Error;

/// Side of a map in the strips and in the animation, in pixels, if whole factors allow it.
const STRIP_SIDE: usize = 64;
const TILE_SIDE: usize = 96;
/// Letters of a token's name beside a strip and above a tile.
const NAME: usize = 12;
/// Letters of a range.
const RANGE: usize = 15;
const GAP: usize = 6;
/// Calls in the strips: all of the first ones, on which scores depend, then some of the others.
const FIRST: usize = 6;
const LATER: usize = 4;
/// Tiles in a row of the animation, and pictures that it has at most.
const COLUMNS: usize = 6;
const MOST_FRAMES: usize = 60;
/// How long a picture of the animation is shown, and the last one.
const MILLISECONDS: u16 = 150;
const LAST_MILLISECONDS: u16 = 1500;
/// Tokens that are drawn at most; EOS always is.
const MOST_TOKENS: usize = 77;

/// What the pictures are made from.
pub(super) struct MapPictures<'a> {
    calls: &'a [CallMaps],
    timesteps: &'a [usize],
    tokens: Vec<Token<'a>>,
}

struct Token<'a> {
    name: &'a str,
    /// For each call, its map.
    maps: Vec<&'a [f32]>,
    range: (f32, f32),
}

impl<'a> MapPictures<'a> {
    /// Of at least one call, its training timesteps, and the names of its tokens.
    pub fn new(calls: &'a [CallMaps], timesteps: &'a [usize], names: &'a [String]) -> Self {
        let mut tokens: Vec<Token<'a>> = Vec::new();
        for call in calls {
            for (place, map) in call.maps().enumerate() {
                if tokens.len() == place {
                    tokens.push(Token {
                        name: names.get(place).map_or("", String::as_str),
                        maps: Vec::new(),
                        range: (f32::INFINITY, f32::NEG_INFINITY),
                    });
                }
                let token = &mut tokens[place];
                token.maps.push(map);
                let range = &mut token.range;
                *range = map.iter().fold(*range, |(low, high), &value| {
                    (low.min(value), high.max(value))
                });
            }
        }
        if tokens.len() > MOST_TOKENS {
            let eos = tokens.pop();
            tokens.truncate(MOST_TOKENS - 1);
            tokens.extend(eos);
        }
        Self {
            calls,
            timesteps,
            tokens,
        }
    }

    /// Rows and columns of a map.
    fn size(&self) -> (usize, usize) {
        self.calls.first().map_or((1, 1), CallMaps::size)
    }

    fn factor(&self, side: usize) -> usize {
        let (rows, columns) = self.size();
        (side / rows.max(columns)).max(1)
    }

    /// A row a token, a column a call.
    ///
    /// # Errors
    /// When the picture cannot be encoded.
    pub fn strips(&self) -> Result<Vec<u8>, Error> {
        let (rows, columns) = self.size();
        let factor = self.factor(STRIP_SIDE);
        let shown = strip_calls(self.calls.len());
        let (height, width) = (rows * factor, columns * factor);
        let step = width.max(text_width(6)) + GAP;
        let left = text_width(NAME) + GAP;
        let top = 2 * LINE + GAP;
        let right = left + shown.len() * step;
        let row_step = height.max(LINE) + GAP;
        let mut canvas = Canvas::new(
            right + text_width(RANGE) + 2 * GAP,
            top + self.tokens.len() * row_step + GAP,
        );
        for (column, &call) in shown.iter().enumerate() {
            let x = left + column * step;
            canvas.text((x, GAP), &format!("call {call}"), 8);
            canvas.text((x, GAP + LINE), &self.time(call, "t="), 8);
        }
        for (row, token) in self.tokens.iter().enumerate() {
            let y = top + row * row_step;
            let middle = y + (height.saturating_sub(LINE)) / 2;
            canvas.text((GAP, middle), token.name, NAME);
            for (column, &call) in shown.iter().enumerate() {
                let at = (left + column * step, y);
                canvas.map(at, token.maps[call], (rows, columns), factor, token.range);
            }
            let (low, high) = token.range;
            canvas.text((right, middle), &format!("{low:.4}-{high:.4}"), RANGE);
        }
        png("the maps at some calls", &[(canvas, 0)])
    }

    /// A tile a token, a picture a call.
    ///
    /// # Errors
    /// When the picture cannot be encoded.
    pub fn animation(&self) -> Result<Vec<u8>, Error> {
        let (rows, columns) = self.size();
        let factor = self.factor(TILE_SIDE);
        let (height, width) = (rows * factor, columns * factor);
        let across = COLUMNS.min(self.tokens.len().max(1));
        let step = (
            width.max(text_width(NAME)) + 2 * GAP,
            height + LINE + 2 * GAP,
        );
        let down = self.tokens.len().div_ceil(across);
        let top = 2 * LINE + GAP;
        // wide enough for the words above, however few tiles there are
        let full = (across * step.0 + 2 * GAP).max(text_width(2 * RANGE));
        let calls = self.calls.len();
        let frame = |call: usize| {
            let mut canvas = Canvas::new(full, top + down * step.1);
            let words = format!("call {call} of {calls}, {}", self.time(call, "t = "));
            canvas.text((GAP, GAP), &words, 2 * RANGE);
            let bar = full - 2 * GAP;
            canvas.fill((GAP, GAP + LINE + 4), (bar, 4), 54);
            let done = bar * (call + 1) / calls.max(1);
            canvas.fill((GAP, GAP + LINE + 4), (done, 4), 20);
            for (index, token) in self.tokens.iter().enumerate() {
                let x = GAP + index % across * step.0;
                let y = top + index / across * step.1;
                canvas.text((x, y), token.name, NAME);
                let at = (x, y + LINE);
                canvas.map(at, token.maps[call], (rows, columns), factor, token.range);
            }
            canvas
        };
        let shown = evenly(0, calls, MOST_FRAMES);
        let last = shown.len().saturating_sub(1);
        let frames = shown.into_iter().enumerate().map(|(index, call)| {
            let time = if index == last {
                LAST_MILLISECONDS
            } else {
                MILLISECONDS
            };
            (frame(call), time)
        });
        png("the maps over all calls", &frames.collect::<Vec<_>>())
    }

    fn time(&self, call: usize, prefix: &str) -> String {
        let time = self.timesteps.get(call);
        time.map_or(String::new(), |t| format!("{prefix}{t}"))
    }
}

/// The calls of the strips.
fn strip_calls(calls: usize) -> Vec<usize> {
    let first = calls.min(FIRST);
    let mut shown: Vec<usize> = (0..first).collect();
    shown.extend(evenly(first, calls, LATER));
    shown
}

/// At most `most` of `from..to`, evenly, the last one included.
fn evenly(from: usize, to: usize, most: usize) -> Vec<usize> {
    let count = to - from;
    let shown = count.min(most);
    (1..=shown).map(|i| from + i * count / shown - 1).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_calls_of_scores_are_shown_and_the_last() {
        assert_eq!(strip_calls(51), [0, 1, 2, 3, 4, 5, 16, 27, 38, 50]);
        assert_eq!(strip_calls(6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(strip_calls(2), [0, 1]);
        assert_eq!(evenly(0, 3, 60), [0, 1, 2]);
        let many = evenly(0, 1000, 60);
        assert_eq!((many.len(), many[59]), (60, 999));
    }

    #[test]
    fn a_token_has_a_row_and_a_scale_of_its_own() {
        // BOS is constant, the content goes from dark to light, EOS from light to dark
        let call = |t: f32| {
            let values = [[0.9; 4], [0.01 * t; 4], [0.5 - 0.1 * t; 4]].concat();
            CallMaps::new(3, (2, 2), values).unwrap()
        };
        let calls: Vec<CallMaps> = (0..3).map(|t| call(t as f32)).collect();
        let names = ["BOS", "cat", "EOS"].map(str::to_owned);
        let pictures = MapPictures::new(&calls, &[900, 500, 100], &names);
        let strips = image::load_from_memory(&pictures.strips().unwrap()).unwrap();
        let strips = strips.to_rgb8();
        let (left, top) = (text_width(NAME) + GAP, 2 * LINE + GAP);
        let at = |row: usize, column: usize| {
            let x = left + column * (64 + GAP) + 30;
            let y = top + row * (64 + GAP) + 30;
            strips.get_pixel(x as u32, y as u32).0
        };
        let (dark, light) = ([0, 0, 4], [252, 253, 191]);
        assert_eq!((at(1, 0), at(1, 2)), (dark, light));
        assert_eq!((at(2, 0), at(2, 2)), (light, dark));
        assert_eq!(at(0, 0), at(0, 2));
        let animation = pictures.animation().unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(animation));
        let reader = reader.read_info().unwrap();
        assert_eq!(reader.info().animation_control.unwrap().num_frames, 3);
    }
}
